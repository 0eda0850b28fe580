package network

import "fmt"

// Check tells whether slots can be made here, by making one that has no link to the host: nothing outside of it is changed.
func (p *Pool) Check() error {
	if err := permitted(); err != nil {
		return err
	}
	if err := p.checkHost(); err != nil {
		return err
	}
	ns, err := NewNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	s := &Slot{pool: p, namespace: ns}
	if err := s.furnish(Policy{}); err != nil {
		return err
	}
	// The host's rules, too, but tried on that namespace.
	return Within(ns, func() error {
		filter, err := installHostFilter(p.subnet)
		if err != nil {
			return fmt.Errorf("trying the host's rules: %w", err)
		}
		return filter.remove()
	})
}
