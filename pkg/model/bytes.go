package model

import "fmt"

// FormatBytes is a size for people: in powers of 1024, as in the quantities that Kubernetes and the configuration have.
func FormatBytes[N int | int64 | uint64](n N) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTP"
	i := -1
	for v >= 1023.95 && i < len(units)-1 { // or it would round to 1024.0
		v /= 1024
		i++
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
