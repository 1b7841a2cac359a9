package main

import "syscall"

// dieWithUs has the agent stopped when this program ends without stopping it, as by SIGKILL.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
