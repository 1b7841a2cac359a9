package main

import (
	_ "embed"
	"fmt"
	"html"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/model"
)

//go:embed page.css
var pageStyle string

// page is the status page in the making. It is not a template of html/template: a program with one keeps
// every exported method of every type (see third_party/conntrack). Text that is not constant goes in by
// way of a markup, which has escaped it.
type page struct{ strings.Builder }

// markup is HTML that is safe to show.
type markup string

func text(format string, args ...any) markup {
	return markup(html.EscapeString(fmt.Sprintf(format, args...)))
}
func code(s string) markup { return "<code>" + text("%s", s) + "</code>" }
func good(s string) markup { return `<span class="good">` + text("%s", s) + "</span>" }
func bad(s string) markup  { return `<span class="bad">` + text("%s", s) + "</span>" }

func (p *page) add(m markup) { p.WriteString(string(m)) }

// note is a line in a box; "" is none.
func (p *page) note(m markup) {
	if m != "" {
		p.add(`<p class="note">` + m + "</p>\n")
	}
}

func (p *page) row(cells ...markup) {
	p.add("<tr>")
	for _, c := range cells {
		p.add("<td>" + c + "</td>")
	}
	p.add("</tr>\n")
}

// table writes a table of what rows writes, or of one cell that says that there is nothing.
func (p *page) table(head []string, rows func()) {
	p.add("<table>\n")
	if len(head) > 0 {
		p.add("<tr>")
		for _, h := range head {
			p.add("<th>" + text("%s", h) + "</th>")
		}
		p.add("</tr>\n")
	}
	before := p.Len()
	if rows(); p.Len() == before {
		p.row("none")
	}
	p.add("</table>\n")
}

// writePage writes the status page.
func writePage(w io.Writer, s *state) error {
	p := &page{}
	p.add(`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5">
<title>` + text("gpu-agent: %s", s.Node) + `</title>
<style>
` + markup(pageStyle) + `</style>
</head>
<body>
<h1>` + text("gpu-agent on %s", s.Node) + `</h1>
<p>` + text("%s · up %s", s.Version, formatAge(s.Started)) +
		` · <a href="metrics">metrics</a> · <a href="readyz">readiness</a> · <a href="debug/snapshot">snapshot</a></p>
`)
	p.notes(s)
	p.gpus(s)
	p.models(s)
	p.parts(s)
	p.add("<h2>Labels</h2>\n")
	p.table(nil, func() {
		for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
			p.row(code(key), code(s.Labels[key]))
		}
	})
	p.add("</body>\n</html>\n")
	_, err := io.WriteString(w, p.String())
	return err
}

func (p *page) notes(s *state) {
	if s.Snapshot.Simulated {
		p.note("These GPUs are simulated: no driver was asked, every value is made up.")
	}
	if !s.Snapshot.Driver.Loaded {
		p.note(text("No driver: %s", s.Snapshot.Driver.Error))
	}
	if s.Plugin == nil {
		p.note(text("Allocation is %s: nothing is offered to the kubelet.", s.Allocation))
	}
	if s.Config.Error != "" {
		p.note(text("The newest configuration is not in force: %s", s.Config.Error))
	}
	for _, problem := range s.Problems {
		p.note(text("Not as configured: %s", problem))
	}
	if s.Snapshot.StateError != "" {
		p.note(text("Health: %s", s.Snapshot.StateError))
	}
	if s.Cache != nil {
		for _, problem := range s.Cache.Problems {
			p.note(text("Model cache: %s", problem.Message))
		}
	}
}

func (p *page) gpus(s *state) {
	title := "GPUs"
	if v := s.Snapshot.Driver.Version; v != "" && !s.Snapshot.Simulated {
		title += " (driver " + v + ")"
	}
	p.add("<h2>" + text("%s", title) + "</h2>\n")
	p.table([]string{"GPU", "Model", "UUID", "Memory", "Use", "Health", "Pods"}, func() {
		for i := range s.Snapshot.Devices {
			d := &s.Snapshot.Devices[i]
			use := markup("")
			if d.Stats != nil && d.Stats.Utilization != nil {
				use = text("%.2f", *d.Stats.Utilization)
			}
			p.row(text("%d", d.Index), text("%s", d.Name), code(string(d.UUID)), memory(d.Stats, d.Memory), use,
				health(d), text("%s", s.Holders(d.UUID)))
			for _, in := range d.Instances {
				p.row(text("%d:%d", d.Index, in.Index), text("MIG %s", in.Profile), code(string(in.UUID)),
					memory(in.Stats, in.Memory), "", "", text("%s", s.Holders(in.UUID)))
			}
		}
		for _, u := range s.Snapshot.Unidentified {
			p.row(text("%d", u.Index), "", "", "", "", bad("unidentified")+text(" does not say who it is, and is in no list: %s", u.Why), "")
		}
	})
}

func memory(st *gpu.Stats, total uint64) markup {
	if st == nil {
		return text("%s", model.FormatBytes(total))
	}
	return text("%s of %s", memoryUsed(st), model.FormatBytes(total))
}

func health(d *gpu.Device) markup {
	h := d.Health
	if h.OK() {
		return good("healthy") + notices(d)
	}
	needs := ""
	if h.Needs != gpu.NoRemedy {
		needs = ", needs " + string(h.Needs)
	}
	return bad(string(h.Reason)) + text(" %s (since %s%s)", h.Text, formatAge(h.Since), needs)
}

func (p *page) models(s *state) {
	c := s.Cache
	if c == nil {
		return
	}
	p.add("<h2>Models</h2>\n<p>" + text("%s used and %s reserved of %s, in ",
		model.FormatBytes(c.Used), model.FormatBytes(c.Reserved), model.FormatBytes(c.Limit)) + code(c.Root) + "</p>\n")
	for _, d := range c.Disks {
		p.add("<p>" + text("Disk %s: %s", d.Name, ofDisk(d)) + "</p>\n")
	}
	for _, refused := range c.Refused {
		p.note(text("%s", refused))
	}
	p.table([]string{"Model", "State", "Size", "Source", "Note"}, func() {
		for _, m := range c.Models {
			size := model.FormatBytes(m.Size)
			if m.Done < m.Size {
				size = model.FormatBytes(m.Done) + " of " + size
			}
			p.row(text("%s", m.Name), text("%s", progress(m)), text("%s", size), code(m.Source), text("%s", note(m)))
			for _, r := range m.Old {
				p.row(text("%s@%s", m.Name, short(r.Revision)), text("Old"), text("%s", model.FormatBytes(r.Size)), code(m.Source), text("%s", oldNote(r)))
			}
		}
	})
}

func (p *page) parts(s *state) {
	p.add("<h2>Parts</h2>\n")
	p.table([]string{"Part", "State"}, func() {
		for _, name := range slices.Sorted(maps.Keys(s.Tasks)) {
			state := good("running")
			if task := s.Tasks[name]; !task.Up {
				state = bad("down") + text(" %s", task.Error)
			}
			p.row(text("%s", name), state)
		}
		if s.Plugin == nil {
			return
		}
		state := bad("not registered") + text(" %s", s.Plugin.Error)
		if s.Plugin.Registered {
			state = good("registered") + text(" since %s", formatAge(s.Plugin.Since))
		}
		p.row("registration with the kubelet", state)
	})
}

// notices are what somebody should plan for while the GPU is in use.
func notices(d *gpu.Device) markup {
	var m markup
	for _, n := range d.Notices {
		m += "<br>" + text("%s: %s (since %s)", n.Code, n.Text, formatAge(n.Since))
	}
	return m
}
