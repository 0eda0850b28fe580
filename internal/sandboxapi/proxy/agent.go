package proxy

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
	"github.com/sporevm/spore/internal/guest/api/filesystem/filesystemconnect"
	"github.com/sporevm/spore/internal/guest/api/process/processconnect"
	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
)

// Parameters of signed file URLs.
const (
	querySignature  = "signature"
	queryExpiration = "signature_expiration"
)

// serveAgent passes a request on to the agent, if its sender may talk to it.
func (p *Proxy) serveAgent(w http.ResponseWriter, r *http.Request, t Target) {
	cors(w.Header())
	if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		w.WriteHeader(http.StatusNoContent)
		return
	}
	if !open(r.URL.Path) {
		answer.Error(w, http.StatusNotFound, "the agent has no such route", "it has /health, /metrics, /envs, /files, /process.Process/ and /filesystem.Filesystem/")
		return
	}
	info, err := p.sandboxes.Get(r.Context(), t.Sandbox)
	if err == nil {
		err = alive(info)
	}
	if r.URL.Path == api.PathHealth && fleet.KindOf(err) == fleet.Conflict {
		// SDKs ask here whether a sandbox runs, and understand this alone as a no.
		answer.Error(w, http.StatusBadGateway, err.Error(), "connect to it to wake it")
		return
	}
	if err != nil {
		answer.Failure(w, r, err, http.StatusBadGateway)
		return
	}
	if !permitted(r, info, time.Now()) {
		answer.Error(w, http.StatusUnauthorized, "the agent of this sandbox wants its token", "send the envdAccessToken of the sandbox as "+HeaderToken+", or sign the file's URL")
		return
	}
	p.forward(w, r, t, &agents{p.sandboxes, t.Sandbox}, &url.URL{Scheme: "http", Host: "guest"})
}

// open tells whether a route of the agent's is for everybody. The others are this host's: they wake and still the guest.
func open(path string) bool {
	switch path {
	case api.PathHealth, api.PathMetrics, api.PathEnvs, api.PathFiles:
		return true
	}
	return strings.HasPrefix(path, "/"+processconnect.ProcessName+"/") || strings.HasPrefix(path, "/"+filesystemconnect.FilesystemName+"/")
}

// permitted tells whether a request may reach the agent.
func permitted(r *http.Request, info fleet.Info, now time.Time) bool {
	if !info.Secure || r.URL.Path == api.PathHealth {
		return true
	}
	if info.Token == "" {
		return false
	}
	if token := r.Header.Get(HeaderToken); token != "" {
		return equal(token, info.Token)
	}
	return r.URL.Path == api.PathFiles && signed(r, info.Token, now)
}

// signed tells whether a file's URL is signed with the token: it then permits what it says, and nothing else, until it expires.
func signed(r *http.Request, token string, now time.Time) bool {
	q := r.URL.Query()
	operation := "read"
	switch r.Method {
	case http.MethodGet, http.MethodHead:
	case http.MethodPost:
		operation = "write"
	default:
		return false
	}
	// The agent takes the user from the credentials where the URL names none; those are not signed.
	if len(q["path"]) > 1 || len(q["username"]) > 1 || r.Header.Get("Authorization") != "" {
		return false
	}
	text := strings.Join([]string{q.Get("path"), operation, q.Get("username"), token}, ":")
	if e := q.Get(queryExpiration); e != "" {
		until, err := strconv.ParseInt(e, 10, 64)
		if err != nil || now.Unix() > until {
			return false
		}
		text += ":" + e
	}
	sum := sha256.Sum256([]byte(text))
	return equal(q.Get(querySignature), "v1_"+base64.RawStdEncoding.EncodeToString(sum[:]))
}

// equal compares secrets without telling by its time where they differ.
func equal(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}

// toAgent makes a request one of the agent's. The user's name travels in the Basic credentials, which stay.
func toAgent(pr *httputil.ProxyRequest) {
	out := pr.Out
	out.Host = "guest"
	out.URL.RawPath = "" // what was checked is what the agent sees
	h := out.Header
	h.Del("X-API-Key")
	h.Del("Cookie")
	h.Del("Connection")
	h.Del("Upgrade")
	if !strings.HasPrefix(h.Get("Authorization"), "Basic ") {
		h.Del("Authorization")
	}
	if q := out.URL.Query(); q.Has(querySignature) || q.Has(queryExpiration) {
		q.Del(querySignature)
		q.Del(queryExpiration)
		out.URL.RawQuery = q.Encode()
	}
}

// cors lets pages of any origin talk to the agent, for they need its token.
func cors(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "*, Authorization")
	h.Set("Access-Control-Expose-Headers", "*")
	h.Set("Access-Control-Max-Age", "7200")
}

// agents is the transport to one sandbox's agent, through all the sessions that it has.
type agents struct {
	sandboxes Sandboxes
	id        string
}

func (a *agents) RoundTrip(r *http.Request) (*http.Response, error) {
	client, err := a.sandboxes.Agent(r.Context(), a.id)
	if err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	res, err := client.RoundTrip(r)
	if errors.Is(err, guest.ErrClosed) && (r.Body == nil || r.Body == http.NoBody) && r.Method == http.MethodGet {
		// It was paused under our hands. If it wakes by itself, it does so now.
		if client, err = a.sandboxes.Agent(r.Context(), a.id); err == nil {
			res, err = client.RoundTrip(r)
		}
	}
	if res != nil {
		// What this host says about origins counts, whatever the guest may say.
		for name := range res.Header {
			if strings.HasPrefix(name, "Access-Control-") {
				res.Header.Del(name)
			}
		}
	}
	return res, err
}
