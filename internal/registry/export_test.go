package registry

// ParseManifest is parseManifest for tests.
func ParseManifest(data []byte) error {
	_, _, err := parseManifest(data)
	return err
}
