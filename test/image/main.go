// Command image packs files into an image, an OCI layout in one tar, without a container engine:
//
//	image -o agent.tar -name docker.io/library/gpu-agent:dev -entrypoint /usr/bin/gpu-agent -libc \
//		bin/gpu-agent=/usr/bin/gpu-agent
//
// The same files and flags give the same bytes: no clock, no owner and no path of the building
// machine enters the archive.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path"
	"runtime"
	"strings"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("image", flag.ContinueOnError)
	out := flags.String("o", "", "the `TAR` to write")
	name := flags.String("name", "", "full image `NAME`, e.g. docker.io/library/gpu-agent:dev")
	entrypoint := flags.String("entrypoint", "", "the `PATH` in the image to run, with any arguments after blanks")
	user := flags.String("user", "", "`USER` to run as, number or number:number (default root)")
	libc := flags.Bool("libc", false, "add the C library, the loader and the CA certificates of this machine")
	flags.Usage = func() {
		fmt.Fprintln(flags.Output(), "usage: image -o TAR -name NAME [flags] FILE=/path/in/image ...")
		flags.PrintDefaults()
	}
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" || *name == "" || flags.NArg() == 0 {
		flags.Usage()
		return errors.New("-o, -name and at least one FILE=/path/in/image are needed")
	}
	if !strings.Contains(*name, "/") || !strings.Contains(path.Base(*name), ":") {
		return fmt.Errorf("-name %s: want registry/repository:tag; containerd finds an image by its full name", *name)
	}
	files := map[string]string{}
	for _, arg := range flags.Args() {
		from, to, ok := strings.Cut(arg, "=")
		if !ok || from == "" || !path.IsAbs(to) || path.Clean(to) != to || to == "/" {
			return fmt.Errorf("%q: want FILE=/path/in/image, with a clean absolute path", arg)
		}
		if _, ok := files[to]; ok {
			return fmt.Errorf("%q: %s is given twice", arg, to)
		}
		files[to] = from
	}
	if *libc {
		if err := addLibc(files); err != nil {
			return err
		}
	}
	return writeImage(*out, image{
		name:       *name,
		arch:       runtime.GOARCH,
		entrypoint: strings.Fields(*entrypoint),
		user:       *user,
		files:      files,
	})
}
