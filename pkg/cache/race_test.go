//go:build race

package cache

// stride is how many steps on disk lie between two faults. The race detector makes a step five times as long and finds
// nothing more at each than at some; all of them are gone through without it.
const stride = 5
