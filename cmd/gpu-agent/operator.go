package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/gpu-agent/gpu-agent/pkg/gpu"
	"github.com/gpu-agent/gpu-agent/pkg/nvml"
)

// What an operator may do to the GPUs: the commands, and the part of the private socket behind them.

type cordonRequest struct {
	Reason string `json:"reason"`
}

// uncordonAnswer says what an operator's word has ended, and what it could not.
type uncordonAnswer struct {
	Ended []string   `json:"ended,omitempty"`
	Left  gpu.Health `json:"left"`
}

type releaseRequest struct {
	For string `json:"for"` // a duration
}

const (
	releaseFor = 10 * time.Minute
	// operatorPatience bounds the wait for the owner of the GPUs; a call of it that takes longer is stuck.
	operatorPatience = 15 * time.Second
)

func (a *agent) deviceAPI(mux *http.ServeMux) {
	mux.HandleFunc("POST /devices/{uuid}/cordon", operator(func(ctx context.Context, r *http.Request) (any, error) {
		var in cordonRequest
		if err := read(r, &in); err != nil {
			return nil, err
		}
		return nil, a.now().monitor.Cordon(ctx, gpu.UUID(r.PathValue("uuid")), in.Reason)
	}))
	mux.HandleFunc("POST /devices/{uuid}/uncordon", operator(func(ctx context.Context, r *http.Request) (any, error) {
		ended, left, err := a.now().monitor.Uncordon(ctx, gpu.UUID(r.PathValue("uuid")))
		return uncordonAnswer{Ended: ended, Left: left}, err
	}))
	mux.HandleFunc("POST /devices/{uuid}/forget", operator(func(ctx context.Context, r *http.Request) (any, error) {
		return nil, a.now().monitor.Forget(ctx, gpu.UUID(r.PathValue("uuid")))
	}))
	mux.HandleFunc("POST /devices/release", operator(func(ctx context.Context, r *http.Request) (any, error) {
		var in releaseRequest
		if err := read(r, &in); err != nil {
			return nil, err
		}
		d, err := time.ParseDuration(in.For)
		if err != nil {
			return nil, err
		}
		return nil, a.now().monitor.Release(ctx, d)
	}))
	mux.HandleFunc("POST /devices/resume", operator(func(ctx context.Context, _ *http.Request) (any, error) {
		return nil, a.now().monitor.Resume(ctx)
	}))
}

func read(r *http.Request, in any) error {
	return json.NewDecoder(http.MaxBytesReader(nil, r.Body, 1<<16)).Decode(in)
}

func operator(do func(context.Context, *http.Request) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), operatorPatience)
		defer cancel()
		out, err := do(ctx, r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusUnprocessableEntity)
			return
		}
		writeJSON(w, http.StatusOK, out)
	}
}

func cordonCommand() *cobra.Command {
	var socket socketFlag
	var reason string
	cmd := &cobra.Command{
		Use:   "cordon UUID --reason TEXT",
		Short: "Take a GPU out of use until uncordon; everybody is shown the reason",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usageError{errors.New("gpu-agent devices cordon: want --reason TEXT: others will ask why")}
			}
			path := "/devices/" + url.PathEscape(args[0]) + "/cordon"
			if err := socket.client().call(cmd.Context(), http.MethodPost, path, cordonRequest{reason}, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is cordoned: no new pod gets it; pods that have it keep it\n", args[0])
			return nil
		},
	}
	socket.add(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that people are shown")
	return cmd
}

func uncordonCommand() *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   "uncordon UUID",
		Short: "End a cordon, and say that the GPU may be used: troubles that wait for evidence or an operator are over",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var out uncordonAnswer
			path := "/devices/" + url.PathEscape(args[0]) + "/uncordon"
			if err := socket.client().call(cmd.Context(), http.MethodPost, path, nil, &out); err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			for _, text := range out.Ended {
				fmt.Fprintf(w, "ended: %s\n", text)
			}
			if !out.Left.OK() {
				return fmt.Errorf("%s is still unhealthy: %s: %s", args[0], out.Left.Reason, out.Left.Text)
			}
			fmt.Fprintf(w, "%s is healthy\n", args[0])
			return nil
		},
	}
	socket.add(cmd)
	return cmd
}

func forgetCommand() *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   "forget UUID",
		Short: "Drop all that is known of a GPU that has left the node for good: its troubles, its cordon, its place in the list",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/devices/" + url.PathEscape(args[0]) + "/forget"
			if err := socket.client().call(cmd.Context(), http.MethodPost, path, nil, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is forgotten\n", args[0])
			return nil
		},
	}
	socket.add(cmd)
	return cmd
}

func releaseCommand() *cobra.Command {
	var socket socketFlag
	var d time.Duration
	cmd := &cobra.Command{
		Use:   "release",
		Short: "Let go of the driver, so that nvidia-smi --gpu-reset can succeed; no GPU is offered meanwhile",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d <= 0 || d > nvml.MaxRelease {
				return usageError{fmt.Errorf("gpu-agent devices release: --for %s: want more than 0s and at most %s", d, nvml.MaxRelease)}
			}
			if err := socket.client().call(cmd.Context(), http.MethodPost, "/devices/release", releaseRequest{d.String()}, nil); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the driver is let go of for %s; gpu-agent devices resume ends that sooner\n", d)
			return nil
		},
	}
	socket.add(cmd)
	cmd.Flags().DurationVar(&d, "for", releaseFor, "at most for this `DURATION`, up to 1h")
	return cmd
}

func resumeCommand() *cobra.Command {
	var socket socketFlag
	cmd := &cobra.Command{
		Use:   "resume",
		Short: "End a release",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := socket.client().call(cmd.Context(), http.MethodPost, "/devices/resume", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "the driver is opened again")
			return nil
		},
	}
	socket.add(cmd)
	return cmd
}
