package bucket

import (
	"errors"
	"strings"
	"syscall"

	"gocloud.dev/gcerrors"
)

// ErrLocation says that a location is none of a store.
var ErrLocation = errors.New("use a folder, gs://bucket/prefix or s3://bucket/prefix")

// serviceError is a failure of the service, or of reaching it, with what the user can do about it.
type serviceError struct {
	err  error
	hint string
}

func (e *serviceError) Error() string { return e.err.Error() }
func (e *serviceError) Unwrap() error { return e.err }

// Hint says what to do.
func (e *serviceError) Hint() string { return e.hint }

// The hints. The services' own words are all there is to tell some failures apart.
const (
	hintRegion      = "name the bucket's region: by AWS_REGION, or as s3://bucket/prefix?region=eu-central-1"
	hintCredentials = "say who you are as for the service's own tools: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or ~/.aws for s3://, GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth application-default login` for gs://"
	hintAllowed     = "these credentials may not do that: look at the bucket's permissions"
	hintReach       = "is the service up, and its address right? Another one than the usual is s3://bucket/prefix?endpoint=http://host:port&use_path_style=true, or STORAGE_EMULATOR_HOST for gs://"
)

// explain adds a hint to an error of the service, if there is one.
func explain(err error) error {
	if err == nil || gcerrors.Code(err) == gcerrors.NotFound {
		return err
	}
	text := strings.ToLower(err.Error())
	says := func(any ...string) bool {
		for _, words := range any {
			if strings.Contains(text, words) {
				return true
			}
		}
		return false
	}
	switch {
	case says("invalid region", "a region must be set", "missing region"):
		return &serviceError{err, hintRegion}
	case says("default credentials", "get credentials", "no ec2 imds role", "invalidaccesskeyid", "signaturedoesnotmatch"):
		return &serviceError{err, hintCredentials}
	case gcerrors.Code(err) == gcerrors.PermissionDenied, says("accessdenied", "statuscode: 403"):
		return &serviceError{err, hintAllowed}
	case errors.Is(err, syscall.ECONNREFUSED), says("no such host", "connection refused"):
		return &serviceError{err, hintReach}
	}
	return err
}
