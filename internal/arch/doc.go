// Package arch holds no code: its test checks which package may import which.
package arch
