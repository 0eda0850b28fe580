// Command spore-agent is process 1 of a spore guest. It is started by the guest's kernel and by nobody else.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/sporevm/spore/internal/guest/agent"
	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/boot"
)

// version is set by the build.
var version = "unknown"

func main() {
	boot.Main(serve)
}

// serve answers the host, one session after the other, until the port fails.
func serve(g boot.Guest) error {
	ctx := context.Background()
	user, err := agent.NewUserCgroup(boot.CgroupRoot)
	if err != nil {
		return err
	}
	memory, err := agent.NewMemoryGuard(user)
	if err != nil {
		return err
	}
	go func() {
		if err := memory.Watch(); err != nil { // the guest works without
			fmt.Fprintf(os.Stderr, "spore-agent: %v\n", err)
		}
	}()
	if err := agent.SetLoopback(); err != nil {
		return err
	}
	children := agent.NewChildren()
	go children.ReapOrphans(ctx)

	var server *agent.Server
	machine, err := agent.NewMachine(user, agent.MachineOptions{
		Version:    version,
		Fatal:      boot.Fatal,
		SetContext: func(c api.Context) { server.SetContext(c) },
	})
	if err != nil {
		return err
	}
	server = agent.New(agent.Options{
		Version:  version,
		Group:    memory.Group,
		Kills:    memory.Kills,
		Children: children,
		Wake:     machine.Wake,
		Quiesce:  machine.Quiesce,
	})
	for {
		conn, err := g.Port.Accept()
		if err != nil {
			return err
		}
		// A session that breaks is the host's affair; the next one starts afresh.
		_ = agent.ServeConn(ctx, conn, server)
	}
}
