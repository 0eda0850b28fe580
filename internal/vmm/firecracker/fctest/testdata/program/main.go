// The Firecracker for tests, and its jailer, as a program that finds all that it needs in itself.
package main

import (
	"github.com/sporevm/spore/internal/vmm/firecracker/fctest"
)

var version string // set by the linker

func main() { fctest.Program(version) }
