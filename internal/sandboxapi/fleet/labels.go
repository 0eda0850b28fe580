package fleet

import "github.com/sporevm/spore/internal/snapshot"

// StateOf returns the sandbox that a snapshot is a state of: what it sleeps in, or what its forks stand on. It is empty for a template.
func StateOf(m *snapshot.Metadata) string {
	if purpose := m.Labels[labelPurpose]; purpose == "" || purpose == purposeSnapshot {
		return ""
	}
	return m.Labels[labelSandbox]
}
