package rootfs

import (
	"slices"
	"strings"
)

// Tree is the file system that the layers applied so far show.
type Tree struct {
	root    *Node
	spool   *Spool
	limits  Limits
	layer   int // number of the layer being applied, from 1
	entries int
	bytes   int64
	pending []*Node // hard links whose target has not come yet
}

// NewTree returns an empty tree that keeps files' bytes in spool. Fields of
// limits that are zero take their default.
func NewTree(spool *Spool, limits Limits) *Tree {
	return &Tree{root: newDir(0, nil), spool: spool, limits: limits.WithDefaults()}
}

// Root returns the root directory.
func (t *Tree) Root() *Node { return t.root }

// Entries returns how many archive entries were read.
func (t *Tree) Entries() int { return t.entries }

// Bytes returns the sum of the logical sizes of the files that were read.
func (t *Tree) Bytes() int64 { return t.bytes }

// split cuts an archive's path into its components. A leading slash means the
// image's root, as container tools have it; ".." may not lead above it.
func split(entry, name string) ([]string, error) {
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "", ".":
		case "..":
			if len(parts) == 0 {
				return nil, entryError(entry, ErrEscape, "%q goes above the root", clip(name))
			}
			parts = parts[:len(parts)-1]
		default:
			if len(part) > maxName {
				return nil, entryError(entry, ErrLimit, "a name of %d bytes; a file system keeps %d", len(part), maxName)
			}
			parts = append(parts, part)
		}
	}
	return parts, nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// lookup modes of walk.
type walkMode int

const (
	find   walkMode = iota // nil where something is missing
	create                 // make what is missing
)

// walk goes from the root along parts, through symbolic links, and never out
// of the tree. It returns the directory there.
func (t *Tree) walk(entry string, parts []string, mode walkMode) (*Node, error) {
	stack := []*Node{t.root}
	todo := slices.Clone(parts)
	slices.Reverse(todo) // the next component is last: targets are pushed
	hops, steps := 0, 0
	for len(todo) > 0 {
		part := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if steps++; steps > maxSteps {
			return nil, entryError(entry, ErrLoop, "links make the path longer than %d steps", maxSteps)
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		dir := stack[len(stack)-1]
		child := dir.children[part]
		if child != nil && child.IsSymlink() {
			if hops++; hops > maxHops {
				return nil, entryError(entry, ErrLoop, "more than %d", maxHops)
			}
			if strings.HasPrefix(child.Target, "/") {
				stack = stack[:1]
			}
			next := strings.Split(child.Target, "/")
			slices.Reverse(next)
			todo = append(todo, next...)
			continue
		}
		if child == nil || !child.IsDir() {
			if mode == find {
				return nil, nil
			}
			if child != nil && child.layer == t.layer {
				return nil, entryError(entry, ErrNotDirectory, "%q is a file of the same layer", clip(part))
			}
			if len(part) > maxName { // spelled by a link's target
				return nil, entryError(entry, ErrLimit, "a name of %d bytes; a file system keeps %d", len(part), maxName)
			}
			child = newDir(t.layer, dir)
			dir.children[part] = child
		}
		stack = append(stack, child)
		if len(stack) > t.limits.Depth {
			return nil, entryError(entry, ErrLimit, "deeper than %d directories", t.limits.Depth)
		}
	}
	return stack[len(stack)-1], nil
}

// find returns the node at parts; a symbolic link at the end is not followed.
func (t *Tree) find(entry string, parts []string) (*Node, error) {
	if len(parts) == 0 {
		return t.root, nil
	}
	dir, err := t.walk(entry, parts[:len(parts)-1], find)
	if err != nil || dir == nil {
		return nil, err
	}
	return dir.children[parts[len(parts)-1]], nil
}

// put places node at parts, over what is there.
func (t *Tree) put(r record) error {
	if len(r.parts) == 0 {
		if r.node == nil || !r.node.IsDir() {
			return entryError(r.name, ErrNotDirectory, "the root of an image is a directory")
		}
		t.root.become(r.node)
		return nil
	}
	dir, err := t.walk(r.name, r.parts[:len(r.parts)-1], create)
	if err != nil {
		return err
	}
	base := r.parts[len(r.parts)-1]
	if r.link != nil {
		return t.putLink(r, dir, base)
	}
	if old := dir.children[base]; old != nil && old.IsDir() && r.node.IsDir() {
		old.become(r.node)
		return nil
	}
	dir.children[base] = r.node
	return nil
}

// become takes over the metadata of a directory that the layer names again;
// what is in it stays. All of the metadata, as the upper directory of an
// overlay has it: the lower one's attributes are not merged.
func (n *Node) become(m *Node) {
	children := n.children
	*n = *m
	n.children = children
}
