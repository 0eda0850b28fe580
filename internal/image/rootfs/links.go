package rootfs

import (
	"context"
	"strings"

	"golang.org/x/sys/unix"
)

// putLink gives an existing node one more name, or leaves a mark where the
// target may still come later in the layer.
func (t *Tree) putLink(r record, dir *Node, base string) error {
	target, err := t.find(r.name, r.link)
	if err != nil {
		return err
	}
	if target == nil {
		mark := &Node{
			Mode:  unix.S_IFREG,
			layer: t.layer,
			link:  &hardLink{entry: r.name, target: r.link},
		}
		dir.children[base] = mark
		t.pending = append(t.pending, mark)
		return nil
	}
	if target.IsDir() {
		return entryError(r.name, ErrHardLink, "%q is a directory", clip(strings.Join(r.link, "/")))
	}
	if old := dir.children[base]; old != nil && old.IsDir() {
		// It goes first, as when extracting, and may take the target with it.
		delete(dir.children, base)
		if again, err := t.find(r.name, r.link); err != nil || again != target {
			return entryError(r.name, ErrHardLink, "%q is in the directory that the link replaces", clip(strings.Join(r.link, "/")))
		}
	}
	dir.children[base] = target
	return nil
}

// settle replaces the marks that putLink left with what they stand for.
func (t *Tree) settle(ctx context.Context) error {
	if len(t.pending) == 0 {
		return nil
	}
	defer func() { t.pending = nil }()
	return t.settleDir(ctx, t.root)
}

func (t *Tree) settleDir(ctx context.Context, dir *Node) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range dir.Names() {
		child := dir.children[name]
		if child.IsDir() {
			if err := t.settleDir(ctx, child); err != nil {
				return err
			}
			continue
		}
		if child.link == nil {
			continue
		}
		node, err := t.follow(child)
		if err != nil {
			return err
		}
		dir.children[name] = node
	}
	return nil
}

// follow goes from one mark to the next, to the file that they all name.
func (t *Tree) follow(mark *Node) (*Node, error) {
	var seen []*Node
	defer func() {
		for _, n := range seen {
			n.link.busy = false
		}
	}()
	n := mark
	for n.link != nil {
		if n.link.busy {
			return nil, entryError(mark.link.entry, ErrHardLink, "links point at one another")
		}
		n.link.busy = true
		seen = append(seen, n)
		next, err := t.find(n.link.entry, n.link.target)
		if err != nil {
			return nil, err
		}
		target := clip(strings.Join(n.link.target, "/"))
		if next == nil {
			return nil, entryError(n.link.entry, ErrHardLink, "%q is not in the image", target)
		}
		if next.IsDir() {
			return nil, entryError(n.link.entry, ErrHardLink, "%q is a directory", target)
		}
		n = next
	}
	return n, nil
}
