package exporter

import (
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// maxScrapes at once: a few Prometheus replicas and a person. More is answered 503.
	maxScrapes = 8
	// scrapeTimeout bounds one scrape; Prometheus gives up after 10 s by default.
	scrapeTimeout = 9 * time.Second
)

// Handler serves the collector, and the Go runtime's and the process's own metrics beside it. A series
// that cannot be shown is logged and left out; the others are served.
func (e *Collector) Handler() http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(e, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.InstrumentMetricHandler(r, promhttp.HandlerFor(r, promhttp.HandlerOpts{
		ErrorLog:            promLog{e.log},
		ErrorHandling:       promhttp.ContinueOnError,
		Registry:            r,
		MaxRequestsInFlight: maxScrapes,
		Timeout:             scrapeTimeout,
		// OpenMetrics appends _total to every counter, and Prometheus prefers that format: DCGM's counters, which
		// lack it, would change their names.
		EnableOpenMetrics: !e.hasDCGM,
	}))
}

// promLog is promhttp's logger over slog.
type promLog struct{ log *slog.Logger }

func (l promLog) Println(v ...any) {
	l.log.Warn("some metrics cannot be shown", "err", fmt.Sprint(v...))
}
