// Package guest is the host's side of what runs inside a machine: the kernel and the initramfs that a guest boots from, and [Client], a session with its
// agent.
//
// The agent's own side is in guest/boot (process 1: drivers, mounts, the stream to the host) and guest/agent (the services); what the two sides say to
// each other is in guest/api.
package guest
