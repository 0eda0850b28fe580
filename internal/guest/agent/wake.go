package agent

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"github.com/sporevm/spore/internal/guest/api"
	"golang.org/x/sys/unix"
)

// ErrInvalid is wrapped by errors about requests that make no sense, whatever the state of the guest.
var ErrInvalid = errors.New("invalid request")

// Wake gives the guest an identity and lets its processes run. Everything that could tell two clones of one snapshot apart is in force before the first
// of them does: clock, random numbers, names, network. It may be called again at any time, also for a guest that already runs.
func (m *Machine) Wake(_ context.Context, id api.Identity) (api.WakeReport, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	start := time.Now()
	r := api.WakeReport{Generation: id.Generation, Epoch: id.Epoch, AgentVersion: m.o.Version, Entropy: len(id.Entropy)}
	second := m.held && id.Generation == m.generation && len(id.Entropy) == 0
	if !second {
		if err := checkIdentity(id); err != nil {
			return r, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if err := m.become(id); err != nil {
			return r, err
		}
	}
	if id.Time != 0 {
		step, err := setClock(id.Time)
		if err != nil {
			return r, err
		}
		r.ClockStep = int64(step)
	}
	if m.held = id.Hold; !m.held {
		r.Thawed = m.frozen
		if err := m.release(); err != nil {
			return r, err
		}
	}
	now := time.Now()
	r.Time, r.Duration = now.UnixNano(), int64(now.Sub(start))
	return r, nil
}

// become puts everything of an identity but the time in force.
func (m *Machine) become(id api.Identity) error {
	if err := m.addEntropy(id.Entropy); err != nil {
		return err
	}
	if err := m.name(id); err != nil {
		return err
	}
	if id.Net != nil && (m.net == nil || !sameNet(m.net, id.Net)) {
		if err := m.setNetwork(id.Net); err != nil {
			return err
		}
		m.net = id.Net
	}
	if id.Context != nil && m.o.SetContext != nil {
		m.o.SetContext(*id.Context)
	}
	m.generation = id.Generation
	return nil
}

// setClock sets the wall clock, in nanoseconds since 1970, and returns by how much it has moved.
func setClock(now int64) (time.Duration, error) {
	step := time.Duration(now - time.Now().UnixNano())
	tv := unix.NsecToTimeval(now)
	if err := unix.Settimeofday(&tv); err != nil {
		return 0, fmt.Errorf("setting the clock: %w", err)
	}
	return step, nil
}

// addEntropy mixes the host's random bytes into the kernel's pool, credits them, and has the generator take its next key from the pool at once. Without
// the last, clones would draw the same numbers for minutes.
func (m *Machine) addEntropy(random []byte) error {
	// struct rand_pool_info: bits of entropy, bytes in the buffer, buffer.
	info := struct {
		bits, size int32
		buf        [api.MaxEntropy]byte
	}{bits: int32(8 * len(random)), size: int32(len(random))}
	copy(info.buf[:], random)
	fd := m.random.Fd()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&info))); errno != 0 {
		return fmt.Errorf("adding entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseeding the random number generator: %w", errno)
	}
	return nil
}
