package fleet_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/vmm"
)

// measuring is an engine whose VMM measures: how often it was asked.
type measuring struct {
	vmm.Engine
	asked *atomic.Int64
	fails bool
}

func (e measuring) Start(ctx context.Context, c vmm.Config) (vmm.Machine, error) {
	m, err := e.Engine.Start(ctx, c)
	if err != nil {
		return nil, err
	}
	return measuringMachine{m, e}, nil
}

type measuringMachine struct {
	vmm.Machine
	engine measuring
}

func (m measuringMachine) Measure(context.Context) (map[string]float64, error) {
	if m.engine.fails {
		return nil, errors.New("it is out of sorts")
	}
	return map[string]float64{"asked": float64(m.engine.asked.Add(1))}, nil
}

// TestMeasuredByTheVMM measures sandboxes whose VMM measures too: its numbers are with the latest measurement alone, and one that fails to is no reason to tell nothing.
func TestMeasuredByTheVMM(t *testing.T) {
	asked := new(atomic.Int64)
	for _, fails := range []bool{false, true} {
		d := newDaemon(t, func(o *fleet.Options) { o.Host.Engine = measuring{o.Host.Engine, asked, fails} })
		i := d.create(fleet.CreateSpec{})
		var all []fleet.Metric
		eventually(t, "it was measured twice", func() bool {
			var err error
			if all, err = d.Metrics(t.Context(), i.ID, time.Time{}, time.Time{}); err != nil {
				t.Fatal(err)
			}
			return len(all) == 2
		})
		before, latest := all[0].VMM, all[1].VMM
		if want := map[bool]float64{false: 2}[fails]; before != nil || latest["asked"] != want || all[1].MemTotal == 0 {
			t.Errorf("it has measured %v, then %v, want %v at last", before, latest, want)
		}
		if err := d.Kill(t.Context(), i.ID); err != nil {
			t.Fatal(err)
		}
	}
}
