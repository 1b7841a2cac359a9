package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
)

// certificates is where Debian and its family, and Go first, look for the CA bundle.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// addLibc adds what the dynamic binaries among files need to start, at the paths where their loader
// looks. It also adds the parts of glibc that nothing names as needed but that are opened at run
// time: the name service, and the stubs that older driver libraries link against.
func addLibc(files map[string]string) error {
	dynamic := 0
	for _, from := range slices.Collect(maps.Values(files)) {
		ok, err := isDynamic(from)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		dynamic++
		listing, err := exec.Command("ldd", from).Output()
		if err != nil {
			return fmt.Errorf("ldd %s: %w", from, err)
		}
		found, err := libraries(string(listing))
		if err != nil {
			return fmt.Errorf("ldd %s: %w", from, err)
		}
		for _, library := range found {
			files[library] = library
			if path.Base(library) == "libc.so.6" {
				addOpened(files, path.Dir(library))
			}
		}
	}
	if dynamic == 0 {
		return errors.New("-libc: every file is statically linked: leave -libc out, or build with CGO_ENABLED=1")
	}
	if _, err := os.Stat(certificates); err == nil {
		files[certificates] = certificates
	}
	return nil
}

func addOpened(files map[string]string, dir string) {
	for _, name := range []string{
		"libdl.so.2", "libpthread.so.0", "librt.so.1", "libm.so.6",
		"libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2",
	} {
		library := path.Join(dir, name)
		if _, err := os.Stat(library); err == nil {
			files[library] = library
		}
	}
}

// libraries reads ldd's listing: "\tlibc.so.6 => /lib/x/libc.so.6 (0x…)" and "\t/lib64/ld-linux… (0x…)".
// The kernel's own page (linux-vdso) has no path and is left out.
func libraries(listing string) ([]string, error) {
	var found []string
	for line := range strings.Lines(listing) {
		if _, after, ok := strings.Cut(line, "=>"); ok {
			if strings.TrimSpace(after) == "not found" {
				return nil, fmt.Errorf("%s: install it first", strings.TrimSpace(line))
			}
			line = after
		}
		if fields := strings.Fields(line); len(fields) > 0 && path.IsAbs(fields[0]) {
			found = append(found, path.Clean(fields[0]))
		}
	}
	return found, nil
}

func isDynamic(name string) (bool, error) {
	f, err := elf.Open(name)
	if _, ok := errors.AsType[*elf.FormatError](err); ok {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", name, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return true, nil
		}
	}
	return false, nil
}
