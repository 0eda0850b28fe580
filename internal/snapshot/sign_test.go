package snapshot_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/snapshot"
)

func newKey(t testing.TB) (ed25519.PublicKey, ed25519.PrivateKey) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return public, private
}

func trusting(t testing.TB, w world, keys ...ed25519.PublicKey) *snapshot.Repo {
	t.Helper()
	repo, err := snapshot.Open(w.store, w.cache, snapshot.Trust(keys))
	if err != nil {
		t.Fatal(err)
	}
	return repo
}

func TestSign(t *testing.T) {
	w := newWorld(t)
	s, other := w.add(t, uuid.New(), nil, simple(1)), w.add(t, uuid.New(), nil, simple(2))
	ours, private := newKey(t)
	theirs, foreign := newKey(t)
	refused := func(id uuid.UUID, words string, keys ...ed25519.PublicKey) {
		t.Helper()
		got, err := trusting(t, w, keys...).OpenID(t.Context(), id)
		var untrusted *snapshot.UntrustedError
		if !errors.As(err, &untrusted) || !strings.Contains(err.Error(), words) {
			t.Errorf("got %v, want %q", err, words)
		}
		if got != nil {
			t.Error("opened")
		}
	}
	refused(s.ID(), "not signed", ours)
	if err := w.repo.Sign(t.Context(), s, foreign); err != nil {
		t.Fatal(err)
	}
	refused(s.ID(), "none of the trusted", ours)
	refused(s.ID(), "none of the trusted")
	for range 2 { // signing again changes nothing
		if err := w.repo.Sign(t.Context(), s, private); err != nil {
			t.Fatal(err)
		}
	}
	all, err := w.repo.Signatures(t.Context(), s.ID())
	if err != nil || len(all) != 2 {
		t.Errorf("%d signatures, %v", len(all), err)
	}
	for _, key := range []ed25519.PublicKey{ours, theirs} {
		got, err := trusting(t, w, key).OpenID(t.Context(), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		got.Close()
	}
	// Somebody else's signature.
	data, err := os.ReadFile(w.file(s.ID(), snapshot.SignatureFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.store.Attach(t.Context(), other.ID(), snapshot.SignatureFile, data); err != nil {
		t.Fatal(err)
	}
	refused(other.ID(), "does not fit", ours)
	rubbish := w.add(t, uuid.New(), nil, simple(3))
	if err := w.store.Attach(t.Context(), rubbish.ID(), snapshot.SignatureFile, []byte("rubbish")); err != nil {
		t.Fatal(err)
	}
	var corrupt *snapshot.CorruptError
	if _, err := trusting(t, w, ours).OpenID(t.Context(), rubbish.ID()); !errors.As(err, &corrupt) {
		t.Errorf("got %v", err)
	}
	// A copy is as trusted as the original, and an untrusted one is not copied.
	to := newWorld(t)
	if _, err := to.repo.CopyFrom(t.Context(), trusting(t, w, ours), s.ID(), nil); err != nil {
		t.Fatal(err)
	}
	got, err := trusting(t, to, theirs).OpenID(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	got.Close()
	// Who trusts a child trusts the data of its ancestors, by the child's header.
	child := w.add(t, uuid.New(), other, change{disk: map[int64][]byte{0: pages(9, 2)}})
	if err := w.repo.Sign(t.Context(), child, private); err != nil {
		t.Fatal(err)
	}
	if report, err := to.repo.CopyFrom(t.Context(), trusting(t, w, ours), child.ID(), nil); err != nil || len(report.Copied) != 2 {
		t.Errorf("%v, %v", report.Copied, err)
	}
	if _, err := newWorld(t).repo.CopyFrom(t.Context(), trusting(t, w, theirs), child.ID(), nil); err == nil {
		t.Error("copied what is not trusted")
	}
}

func TestKeys(t *testing.T) {
	public, private := newKey(t)
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	got, err := snapshot.ParsePrivateKey(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil || !got.Equal(private) {
		t.Errorf("got %v", err)
	}
	der, err = x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	one := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	keys, err := snapshot.ParsePublicKeys(append(bytes.Clone(one), one...))
	if err != nil || len(keys) != 2 || !keys[1].Equal(public) {
		t.Errorf("%d keys, %v", len(keys), err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der[1:]})} {
		if _, err := snapshot.ParsePublicKeys(bad); err == nil {
			t.Errorf("%q is a public key", bad)
		}
		if _, err := snapshot.ParsePrivateKey(bad); err == nil {
			t.Errorf("%q is a private key", bad)
		}
	}
}

func FuzzSignatures(f *testing.F) {
	_, key := newKey(f)
	w := newWorld(f)
	s := w.add(f, uuid.New(), nil, simple(1))
	if err := w.repo.Sign(f.Context(), s, key); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(w.file(s.ID(), snapshot.SignatureFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("ed25519 a b\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := snapshot.DecodeSignatures(data)
		if err != nil {
			return
		}
		again, err := snapshot.DecodeSignatures(snapshot.EncodeSignatures(all))
		if err != nil || len(again) != len(all) {
			t.Errorf("%d became %d, %v", len(all), len(again), err)
		}
	})
}
