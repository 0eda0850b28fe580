package fleet

import (
	"context"
	"errors"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/sandbox"
)

// pool is the waiting sandboxes of one template.
type pool struct {
	template *template
	pool     *sandbox.Pool
	spec     PoolSpec
}

// startPool starts filling a pool for what ref means now.
func (f *Fleet) startPool(ctx context.Context, ref string, spec PoolSpec) error {
	id, err := f.resolve(ctx, ref)
	if err != nil {
		return err
	}
	t, err := f.acquire(ctx, id)
	if err != nil {
		return err
	}
	p := &pool{template: t, spec: spec, pool: f.host.NewPool(t.snap, sandbox.PoolOptions{Size: spec.Size, Warmup: spec.Warmup, Room: f.hasRoom})}
	f.mu.Lock()
	old := f.pools[ref]
	f.pools[ref] = p
	f.mu.Unlock()
	if old != nil {
		return f.closePool(old)
	}
	return nil
}

func (f *Fleet) closePool(p *pool) error {
	return errors.Join(p.pool.Close(), f.letGo(p.template))
}

// followPools replaces the pools whose name points to another template by now.
func (f *Fleet) followPools(ctx context.Context) {
	f.mu.Lock()
	pools := make(map[string]*pool, len(f.pools))
	for ref, p := range f.pools {
		pools[ref] = p
	}
	f.mu.Unlock()
	for ref, p := range pools {
		id, err := f.resolve(ctx, ref)
		if err == nil && id != p.template.id {
			err = f.startPool(ctx, ref, p.spec)
		}
		if err != nil {
			f.o.Log.Warn("following the template of a pool", "template", ref, "error", err)
		}
	}
}

// poolOf is the pool of a template, or nil.
func (f *Fleet) poolOf(id uuid.UUID) *pool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, p := range f.pools {
		if p.template.id == id {
			return p
		}
	}
	return nil
}

func (f *Fleet) allPools() []*pool {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []*pool
	for _, p := range f.pools {
		list = append(list, p)
	}
	return list
}

// WaitPools waits until all pools are full, or one can't be filled.
func (f *Fleet) WaitPools(ctx context.Context) error {
	var errs []error
	for _, p := range f.allPools() {
		errs = append(errs, p.pool.Wait(ctx))
	}
	return errors.Join(errs...)
}

func (f *Fleet) closePools() error {
	var errs []error
	for _, p := range f.allPools() {
		errs = append(errs, f.closePool(p))
	}
	f.mu.Lock()
	f.pools = map[string]*pool{}
	f.mu.Unlock()
	return errors.Join(errs...)
}
