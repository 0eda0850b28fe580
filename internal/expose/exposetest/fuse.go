package exposetest

import (
	"errors"
	"os"

	"github.com/sporevm/spore/internal/expose"
)

// FUSE tells why no files can be served over FUSE here; nil if they can.
func FUSE() error {
	if os.Geteuid() != 0 {
		return errors.New("serving files over FUSE takes root")
	}
	s, err := expose.ServeFUSE([]expose.FUSEFile{{Name: "file", Base: expose.Zeros(expose.BlockSize)}}, nil)
	if err != nil {
		return err
	}
	s.Close()
	<-s.Done()
	return nil
}
