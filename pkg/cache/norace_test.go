//go:build !race

package cache

const stride = 1
