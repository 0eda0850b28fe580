package snapshot

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/block"
	"github.com/sporevm/spore/internal/store"
)

// SignatureFile is the attachment with a snapshot's signatures, a line for each:
//
//	ed25519 <public key, base64> <signature, base64>
const SignatureFile = "metadata.sig"

// signedPrefix keeps a signature from being taken for one of anything else.
const signedPrefix = "spore snapshot v1\n"

// maxSignatures bounds the lines of SignatureFile.
const maxSignatures = 64

// Signature vouches for a snapshot, through the digest of its metadata.
type Signature struct {
	Key   ed25519.PublicKey
	Bytes []byte
}

// signedMessage is what is signed: the snapshot's digest, and through it all.
func signedMessage(digest block.Digest) []byte { return append([]byte(signedPrefix), digest[:]...) }

// Sign adds a signature to a snapshot. A signature of the same key is replaced.
func (r *Repo) Sign(ctx context.Context, s *Snapshot, key ed25519.PrivateKey) error {
	all, err := r.Signatures(ctx, s.ID())
	if err != nil {
		return err
	}
	public := key.Public().(ed25519.PublicKey)
	all = slices.DeleteFunc(all, func(o Signature) bool { return o.Key.Equal(public) })
	return r.setSignatures(ctx, s.ID(), append(all, Signature{Key: public, Bytes: ed25519.Sign(key, signedMessage(s.digest))}))
}

// AttachSignatures puts signatures that come from elsewhere, as SignatureFile holds
// them, beside those that a snapshot has. Of two of one key the one that is there
// already stays.
func (r *Repo) AttachSignatures(ctx context.Context, id uuid.UUID, data []byte) error {
	more, err := decodeSignatures(data)
	if err != nil {
		return &CorruptError{ID: id, Artifact: SignatureFile, Err: err}
	}
	all, err := r.Signatures(ctx, id)
	if err != nil {
		return err
	}
	had := len(all)
	for _, s := range more {
		if !slices.ContainsFunc(all, func(o Signature) bool { return o.Key.Equal(s.Key) }) {
			all = append(all, s)
		}
	}
	if len(all) == had {
		return nil
	}
	return r.setSignatures(ctx, id, all)
}

func (r *Repo) setSignatures(ctx context.Context, id uuid.UUID, all []Signature) error {
	if len(all) > maxSignatures {
		return fmt.Errorf("signing snapshot %s: it has %d signatures, more are not allowed", id, maxSignatures)
	}
	return r.store.Attach(ctx, id, SignatureFile, encodeSignatures(all))
}

// Signatures returns a snapshot's signatures, which were not checked. A snapshot
// without any has none.
func (r *Repo) Signatures(ctx context.Context, id uuid.UUID) ([]Signature, error) {
	data, err := readAll(ctx, r.store, id, SignatureFile, store.MaxAttachment)
	if errors.Is(err, store.ErrNoArtifact) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	all, err := decodeSignatures(data)
	if err != nil {
		return nil, &CorruptError{ID: id, Artifact: SignatureFile, Err: err}
	}
	return all, nil
}

func encodeSignatures(all []Signature) []byte {
	var b bytes.Buffer
	for _, s := range all {
		fmt.Fprintf(&b, "ed25519 %s %s\n", base64.StdEncoding.EncodeToString(s.Key), base64.StdEncoding.EncodeToString(s.Bytes))
	}
	return b.Bytes()
}

func decodeSignatures(data []byte) ([]Signature, error) {
	if len(data) > store.MaxAttachment {
		return nil, fmt.Errorf("it is longer than %d bytes", store.MaxAttachment)
	}
	var all []Signature
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) != 3 || fields[0] != "ed25519" || len(all) == maxSignatures {
			return nil, fmt.Errorf("line %d is no signature", len(all)+1)
		}
		key, err := base64.StdEncoding.DecodeString(fields[1])
		if err != nil || len(key) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("line %d has no public key", len(all)+1)
		}
		sig, err := base64.StdEncoding.DecodeString(fields[2])
		if err != nil || len(sig) != ed25519.SignatureSize {
			return nil, fmt.Errorf("line %d has no signature", len(all)+1)
		}
		all = append(all, Signature{Key: key, Bytes: sig})
	}
	return all, nil
}

// UntrustedError says that no trusted key has signed a snapshot.
type UntrustedError struct {
	ID     uuid.UUID
	Signed int // signatures by other keys
	Forged int // signatures that name a trusted key and don't fit
}

// Error says what was found instead.
func (e *UntrustedError) Error() string {
	switch {
	case e.Forged > 0:
		return fmt.Sprintf("snapshot %s is not trusted: its signature does not fit it", e.ID)
	case e.Signed > 0:
		return fmt.Sprintf("snapshot %s is not trusted: it is signed, but by none of the trusted keys", e.ID)
	}
	return fmt.Sprintf("snapshot %s is not trusted: it is not signed", e.ID)
}

// Hint says how a snapshot comes to be trusted.
func (e *UntrustedError) Hint() string {
	return "`spore sign --key FILE SNAPSHOT` signs it, --trusted-keys lists the keys whose signatures count"
}

// Trust makes a Repo open only snapshots that one of the keys has signed.
func Trust(keys []ed25519.PublicKey) Option {
	return func(r *Repo) { r.trust = func(s *Snapshot, all []Signature) error { return trusted(s, all, keys) } }
}

// Trusts tells, as OpenID would, whether a snapshot may be opened that is to come
// from elsewhere: metadata and signatures are what its files hold. The error is an
// *UntrustedError, or tells what is damaged.
func (r *Repo) Trusts(metadata, signatures []byte) error {
	if r.trust == nil {
		return nil
	}
	m, err := DecodeMetadata(metadata)
	if err != nil {
		return err
	}
	all, err := decodeSignatures(signatures)
	if err != nil {
		return &CorruptError{ID: m.ID, Artifact: SignatureFile, Err: err}
	}
	return r.trust(&Snapshot{meta: m, digest: block.Sum(metadata)}, all)
}

// trusted tells whether one of keys has signed s.
func trusted(s *Snapshot, all []Signature, keys []ed25519.PublicKey) error {
	refusal := &UntrustedError{ID: s.ID(), Signed: len(all)}
	for _, sig := range all {
		if !slices.ContainsFunc(keys, func(k ed25519.PublicKey) bool { return k.Equal(sig.Key) }) {
			continue
		}
		if ed25519.Verify(sig.Key, signedMessage(s.digest), sig.Bytes) {
			return nil
		}
		refusal.Forged++
	}
	return refusal
}

// ParsePrivateKey reads an ed25519 key in PEM (PKCS #8), as `openssl genpkey
// -algorithm ed25519` writes it.
func ParsePrivateKey(data []byte) (ed25519.PrivateKey, error) {
	p, _ := pem.Decode(data)
	if p == nil || p.Type != "PRIVATE KEY" {
		return nil, errors.New("it holds no PEM block PRIVATE KEY")
	}
	key, err := x509.ParsePKCS8PrivateKey(p.Bytes)
	if err != nil {
		return nil, errors.New("its PRIVATE KEY can't be read") // the cause might quote it
	}
	private, ok := key.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("it holds a %T, not an ed25519 key", key)
	}
	return private, nil
}

// ParsePublicKeys reads ed25519 keys in PEM (PKIX), one after another, as `openssl
// pkey -pubout` writes them.
func ParsePublicKeys(data []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for {
		var p *pem.Block
		if p, data = pem.Decode(data); p == nil {
			break
		}
		if p.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("it holds a %.40q, only PUBLIC KEY is allowed", p.Type)
		}
		key, err := x509.ParsePKIXPublicKey(p.Bytes)
		if err != nil {
			return nil, fmt.Errorf("public key %d: %w", len(keys)+1, err)
		}
		public, ok := key.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("public key %d is a %T, not an ed25519 key", len(keys)+1, key)
		}
		keys = append(keys, public)
	}
	if len(keys) == 0 {
		return nil, errors.New("it holds no PEM block PUBLIC KEY")
	}
	return keys, nil
}
