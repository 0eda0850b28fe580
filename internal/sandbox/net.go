package sandbox

import (
	"errors"
	"fmt"

	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/network"
	"github.com/sporevm/spore/internal/vmm"
)

// checkPolicy refuses a policy that nothing would enforce.
func checkPolicy(p network.Policy, net vmm.Network) error {
	if !p.IsZero() && net != vmm.NetTap {
		return fmt.Errorf("allowed and denied destinations need a network of the kind tap, this machine's is %s", net)
	}
	return p.Check()
}

// attach gives a machine that is to have one its tap interface.
func (s *Sandbox) attach(c *vmm.Config) error {
	if c.Network != vmm.NetTap {
		return nil
	}
	if s.host.Networks == nil {
		return errors.New("machines with a tap interface are not to be had here")
	}
	var err error
	if s.slot, err = s.host.Networks.Acquire(s.policy); err != nil {
		return fmt.Errorf("making the machine's network: %w", err)
	}
	c.Tap = s.slot
	return nil
}

// SetPolicy says anew what the machine may reach, from now on and for connections that are there as well. Only one with a tap interface can be told.
func (s *Sandbox) SetPolicy(p network.Policy) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := checkPolicy(p, vmm.Network(s.meta.Net)); err != nil {
		return err
	}
	if s.closed || s.slot == nil {
		return nil // nothing to reach anything by
	}
	if err := s.slot.SetPolicy(p); err != nil {
		return fmt.Errorf("changing what the machine may reach: %w", err)
	}
	s.policy = p
	return nil
}

// restrict is SetPolicy for a machine that may reach all so far.
func (s *Sandbox) restrict(p network.Policy) error {
	if p.IsZero() {
		return nil
	}
	return s.SetPolicy(p)
}

// network is the guest's part of its network; nil: it has none.
func (s *Sandbox) network() (*api.Net, error) {
	switch vmm.Network(s.meta.Net) {
	case vmm.NetUser:
		return &api.Net{Address: "10.0.2.15/24", Gateway: "10.0.2.2", DNS: []string{"10.0.2.3"}}, nil
	case vmm.NetTap:
		servers, err := network.NameServers()
		if err != nil {
			return nil, err
		}
		return &api.Net{MAC: network.MAC(s.id).String(), Address: network.GuestAddress, Gateway: network.Gateway, DNS: servers}, nil
	}
	return nil, nil
}
