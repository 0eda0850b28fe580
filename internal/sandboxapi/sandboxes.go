package sandboxapi

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/sporevm/spore/internal/sandboxapi/answer"
	"github.com/sporevm/spore/internal/sandboxapi/fleet"
	"github.com/sporevm/spore/internal/sandboxapi/openapi"
)

func (s routes) CreateSandboxV1(w http.ResponseWriter, r *http.Request) { s.create(w, r, false) }

func (s routes) CreateSandbox(w http.ResponseWriter, r *http.Request) { s.create(w, r, true) }

func (s routes) create(w http.ResponseWriter, r *http.Request, secure bool) {
	var q openapi.NewSandbox
	if !s.read(w, r, &q) {
		return
	}
	switch {
	case isFalse(q.AutoPauseMemory):
		refuse(w, "autoPauseMemory: a pause always keeps the memory", "leave it out")
		return
	case len(q.VolumeMounts) > 0:
		refuse(w, "volumeMounts: this daemon has no volumes", "copy the files into the template, or into the sandbox when it is there")
		return
	case len(q.Iam) > 0:
		refuse(w, "iam: this daemon hands out no workload identities", "give the sandbox what it needs by envVars")
		return
	case q.AutoResume.Enabled && !q.AutoPause:
		refuse(w, "autoResume: only a sandbox that is paused when its time is up can wake by itself", "set autoPause as well")
		return
	case len(q.Network.AdditionalProperties) > 0:
		refuseNetwork(w, "allowOut, denyOut and allowPublicTraffic")
		return
	case isFalse(q.Network.AllowPublicTraffic) && !secure && !q.Secure: // whoever may start a process reaches every port from within
		refuse(w, "network: ports that want a token are no use where the agent wants none", "set secure as well")
		return
	}
	spec := fleet.CreateSpec{
		Template: q.TemplateID, Owner: caller(r.Context()), Timeout: seconds(q.Timeout), OnTimeout: fleet.Kill, AutoResume: q.AutoResume.Enabled,
		Insecure: !secure && !q.Secure, Private: isFalse(q.Network.AllowPublicTraffic), Metadata: q.Metadata, Env: q.EnvVars,
		Reach: fleet.Reach{Allow: q.Network.AllowOut, Deny: q.Network.DenyOut, Offline: isFalse(q.AllowInternetAccess)},
	}
	if q.AutoPause {
		spec.OnTimeout = fleet.Pause
	}
	info, err := s.o.Sandboxes.Create(r.Context(), spec)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	answer.JSON(w, http.StatusCreated, s.briefly(r, info))
}

// seconds is a time span of the API's. It fits, for the document bounds it.
func seconds(n int64) time.Duration { return time.Duration(n) * time.Second }

func isFalse(b *bool) bool { return b != nil && !*b }

// online tells whether a sandbox reaches what it was not expressly allowed to.
func online(info fleet.Info) bool {
	for _, deny := range info.Reach.Deny {
		if deny.Bits() == 0 {
			return false
		}
	}
	return info.Net != "" && info.Net != "none"
}

func (s routes) ListSandboxesV1(w http.ResponseWriter, r *http.Request, q openapi.ListSandboxesV1Params) {
	metadata, err := metadataFilter(q.Metadata)
	if err != nil {
		refuse(w, err.Error(), seeDocument)
		return
	}
	listed := []openapi.ListedSandbox{}
	for token := ""; ; {
		page, err := s.o.Sandboxes.List(r.Context(), fleet.Filter{
			Owner: caller(r.Context()), Metadata: metadata, States: []fleet.State{fleet.Running}, Limit: 1000, Token: token,
		})
		if err != nil {
			s.fail(w, r, err)
			return
		}
		for _, info := range page.Sandboxes {
			listed = append(listed, s.inList(info))
		}
		if token = page.Next; token == "" {
			break
		}
	}
	answer.JSON(w, http.StatusOK, listed)
}

func (s routes) ListSandboxes(w http.ResponseWriter, r *http.Request, q openapi.ListSandboxesParams) {
	metadata, err := metadataFilter(q.Metadata)
	if err != nil {
		refuse(w, err.Error(), seeDocument)
		return
	}
	f := fleet.Filter{
		Owner: caller(r.Context()), Metadata: metadata, Template: q.Template, StartedAfter: q.StartedAfter, Oldest: q.Order == openapi.Asc,
		Limit: q.Limit, Token: q.NextToken,
	}
	for _, state := range q.State {
		f.States = append(f.States, fleet.State(state))
	}
	page, err := s.o.Sandboxes.List(r.Context(), f)
	if err != nil {
		s.fail(w, r, err)
		return
	}
	listed := make([]openapi.ListedSandbox, 0, len(page.Sandboxes))
	for _, info := range page.Sandboxes {
		listed = append(listed, s.inList(info))
	}
	if page.Next != "" {
		w.Header().Set("X-Next-Token", page.Next)
	}
	w.Header().Set("X-Total-Running", strconv.Itoa(page.Running))
	answer.JSON(w, http.StatusOK, listed)
}

// metadataFilter reads key=value&key=value. SDKs encode keys and values once more before they encode the pairs.
func metadataFilter(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	pairs, err := url.ParseQuery(s)
	if err != nil {
		return nil, fmt.Errorf("query parameter \"metadata\": %w", err)
	}
	m := make(map[string]string, len(pairs))
	for key, values := range pairs {
		m[unescaped(key)] = unescaped(values[len(values)-1])
	}
	return m, nil
}

func unescaped(s string) string {
	if u, err := url.PathUnescape(s); err == nil {
		return u
	}
	return s
}

func (s routes) GetSandbox(w http.ResponseWriter, r *http.Request, id string) {
	s.with(w, r, id, func(info fleet.Info) error {
		answer.JSON(w, http.StatusOK, s.inDetail(r, info))
		return nil
	})
}

func (s routes) KillSandbox(w http.ResponseWriter, r *http.Request, id string) {
	s.with(w, r, id, func(fleet.Info) error {
		if err := s.o.Sandboxes.Kill(r.Context(), id); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

func (s routes) SetNetwork(w http.ResponseWriter, r *http.Request, id string) {
	var q openapi.NetworkUpdate
	if !s.read(w, r, &q) {
		return
	}
	if len(q.AdditionalProperties) > 0 {
		refuseNetwork(w, "allowOut and denyOut")
		return
	}
	s.with(w, r, id, func(fleet.Info) error {
		if err := s.o.Sandboxes.SetReach(r.Context(), id, fleet.Reach{Allow: q.AllowOut, Deny: q.DenyOut, Offline: isFalse(q.AllowInternetAccess)}); err != nil {
			return err
		}
		w.WriteHeader(http.StatusNoContent)
		return nil
	})
}

// refuseNetwork answers a request for what takes more than a filter of addresses. known is what may be said here.
func refuseNetwork(w http.ResponseWriter, known string) {
	refuse(w, "network: this daemon filters by address, and changes no requests", "leave out all but "+known)
}
