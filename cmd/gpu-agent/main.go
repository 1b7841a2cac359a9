// Gpu-agent is the node agent of a GPU cluster: device plugin, metrics, labels and model cache.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	_ "github.com/gpu-agent/gpu-agent/internal/already" // models wait, most often
)

// version is set by the linker.
var version = "dev"

// The exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2 // bad usage or configuration
	exitTimeout = 3
)

// usageError is an error of the caller's: exit 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

var errTimeout = errors.New("timed out")

func main() {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // of nohup
		ends = append(ends, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), ends...)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is the whole program.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := command()
	root.SetArgs(args)
	out := &output{Writer: stdout}
	root.SetOut(out)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = out.err
	}
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, new(usageError)):
		fmt.Fprintln(stderr, err)
		return exitUsage
	case errors.Is(err, errTimeout):
		fmt.Fprintln(stderr, "gpu-agent:", err)
		return exitTimeout
	}
	fmt.Fprintln(stderr, "gpu-agent:", err)
	return exitFailed
}

// output is the standard output. A command whose text did not get there has failed, whoever looked at each write.
type output struct {
	io.Writer
	err error // the first
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if o.err == nil {
		o.err = err
	}
	return n, err
}

// terminal is the terminal that out leads to, nil where it leads elsewhere.
func terminal(out io.Writer) *os.File {
	if o, ok := out.(*output); ok {
		out = o.Writer
	}
	if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return f
	}
	return nil
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use:               "gpu-agent",
		Short:             "GPUs, metrics, labels and models of one node",
		SilenceUsage:      true,
		SilenceErrors:     true,
		Version:           version,
		Args:              cobra.ArbitraryArgs,
		RunE:              noCommand,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags()) },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
			return noCommand(cmd, args) // whose flags these would be
		}
		return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
	})
	root.AddCommand(runCommand(), statusCommand(), labelsCommand(), devicesCommand(), configCommand(), modelsCommand(), cdiCommand())
	usageErrors(root)
	return root
}

// usageErrors makes wrong arguments of every command the caller's error.
func usageErrors(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		usageErrors(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ArbitraryArgs, RunE: noCommand}
	cmd.AddCommand(subs...)
	return cmd
}

// noCommand says what is missing, or what there is none of, and which may have been meant.
func noCommand(cmd *cobra.Command, args []string) error {
	path := cmd.CommandPath()
	if len(args) == 0 {
		return usageError{fmt.Errorf("%s: no command: see %s --help", path, path)}
	}
	cmd.SuggestionsMinimumDistance = 2
	meant := ""
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		meant = ", did you mean " + strings.Join(near, " or ") + "?"
	}
	return usageError{fmt.Errorf("%s: unknown command %q%s: see %s --help", path, args[0], meant, path)}
}

// fromEnvironment sets each flag that was not given from its GPU_AGENT_ variable; an empty one is none, as
// manifests leave them.
func fromEnvironment(flags *pflag.FlagSet) error {
	var wrong error
	flags.VisitAll(func(f *pflag.Flag) {
		name := "GPU_AGENT_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		value := os.Getenv(name)
		if value == "" || f.Changed || f.Name == "help" || f.Name == "version" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil && wrong == nil {
			wrong = usageError{fmt.Errorf("$%s: %w", name, err)}
		}
	})
	return wrong
}
