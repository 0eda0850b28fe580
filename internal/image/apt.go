package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/image/rootfs"
)

// aptRecipe is part of the digest: raise it when the same packages would come
// out as other files.
const aptRecipe = "minbase 1"

var (
	aptSuite   = regexp.MustCompile(`^[a-z][a-z0-9.-]{0,63}$`)
	aptPackage = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]{0,99}(:[a-z0-9]{1,20})?$`)
	// "Inst name [old] (version origin [arch]) …", as apt-get's simulation puts it
	aptInstall = regexp.MustCompile(`^Inst (\S+) (?:\[\S+\] )?\((\S+) .*\[(\S+)\]\)`)
)

// aptSpec is what "apt:SUITE/pkg,pkg" asks for.
type aptSpec struct {
	suite    string
	packages []string
	arch     string // Debian's word
}

func parseApt(s, arch string) (aptSpec, error) {
	suite, list, _ := strings.Cut(s, "/")
	spec := aptSpec{suite: suite, arch: debianArch(arch)}
	if !aptSuite.MatchString(suite) {
		return spec, &hintError{fmt.Errorf("%w: bad suite %q", ErrReference, suite), "as in apt:bookworm/python3-minimal,curl"}
	}
	for pkg := range strings.SplitSeq(list, ",") {
		if pkg = strings.TrimSpace(pkg); pkg == "" {
			continue
		}
		if !aptPackage.MatchString(pkg) {
			return spec, fmt.Errorf("%w: bad package name %q", ErrReference, pkg)
		}
		spec.packages = append(spec.packages, pkg)
	}
	slices.Sort(spec.packages)
	spec.packages = slices.Compact(spec.packages)
	return spec, nil
}

// debianArch translates Go's name of an architecture into Debian's.
func debianArch(arch string) string {
	switch arch {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	}
	return arch
}

// aptTrust is how long apt's answer is taken for still true: asking takes
// seconds. Should the archive change meanwhile, the build notices.
const aptTrust = time.Hour

// resolveApt finds out which packages, in which versions, an image of the
// suite is made of today. The digest covers that list and the sources that
// the packages come from. No packages are downloaded.
func (b *Builder) resolveApt(ctx context.Context, s string, p Platform) (*Image, error) {
	spec, err := parseApt(s, p.Arch)
	if err != nil {
		return nil, err
	}
	sources, err := hostSources(b.o.AptDir, spec.suite)
	if err != nil {
		return nil, err
	}
	packages, err := b.aptPackages(ctx, spec, sources)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s\n%s %s\n%s\n%s\n", aptRecipe, spec.suite, spec.arch, sources, strings.Join(packages, "\n"))
	return &Image{
		Digest:   digestOf(h),
		Platform: p,
		Config: Config{
			Cmd: []string{"/bin/bash"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
		Packages: packages,
		layers: []layer{{
			name:  "packages of " + spec.suite,
			size:  -1,
			built: true,
			finish: func(tree *rootfs.Tree) error {
				if err := installed(tree, packages); err != nil {
					b.cache.forget(spec.memo(sources))
					return err
				}
				// Whose these are depends on who ran apt; it sees to it itself
				// when it uses them.
				return errors.Join(tree.Disown("var/cache/apt/archives/partial"), tree.Disown("var/lib/apt/lists/partial"))
			},
			open: func(ctx context.Context) (io.ReadCloser, error) {
				return spec.build(ctx, b.cache, sources), nil
			},
		}},
	}, nil
}

// aptPackages asks apt, unless it was asked a short while ago.
func (b *Builder) aptPackages(ctx context.Context, spec aptSpec, sources string) ([]string, error) {
	memo := spec.memo(sources)
	var packages []string
	if b.cache.recall(memo, aptTrust, &packages) && len(packages) > 0 {
		return packages, nil
	}
	var out bytes.Buffer
	if err := spec.run(ctx, b.cache, sources, &out, "/dev/null", "--simulate", "--verbose"); err != nil {
		return nil, err
	}
	packages = parseInstalls(out.String(), spec.arch)
	if len(packages) == 0 {
		return nil, errors.New("mmdebstrap's simulation names no packages")
	}
	return packages, b.cache.remember(memo, packages)
}

// memo names apt's answer among what the cache remembers.
func (s aptSpec) memo(sources string) string {
	return "apt-" + digestBytes(fmt.Append(nil, aptRecipe, s, sources))[len("sha256:"):]
}

// parseInstalls returns what the simulation would install, sorted.
func parseInstalls(out, arch string) []string {
	var list []string
	for line := range strings.Lines(out) {
		m := aptInstall.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		name := m[1]
		if m[3] != arch && m[3] != "all" && !strings.Contains(name, ":") {
			name += ":" + m[3]
		}
		list = append(list, name+"="+m[2])
	}
	slices.Sort(list)
	return slices.Compact(list)
}
