// Package buckettest runs object storage services for tests.
package buckettest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
)

// Services are an S3 and a Cloud Storage server on loopback.
type Services struct {
	S3, GS string // addresses
}

// Run builds the servers, which are a module of their own below the directory
// root of this one, runs the tests of m while they serve, and returns the exit
// code. Ready, which may be nil, is called before the tests.
func Run(m interface{ Run() int }, root string, ready func(Services)) int {
	dir, err := os.MkdirTemp("", "emulators-")
	if err != nil {
		return failed(err)
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "emulators")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = filepath.Join(root, "test", "emulators")
	if out, err := build.CombinedOutput(); err != nil {
		return failed(fmt.Errorf("building the emulators: %w\n%s", err, out))
	}
	emulators := exec.Command(program)
	emulators.Stderr = os.Stderr
	stdin, err := emulators.StdinPipe() // they end when it does, and it does when we die
	if err != nil {
		return failed(err)
	}
	stdout, err := emulators.StdoutPipe()
	if err != nil {
		return failed(err)
	}
	if err := emulators.Start(); err != nil {
		return failed(err)
	}
	defer emulators.Wait()
	defer stdin.Close()
	var s Services
	lines := bufio.NewScanner(stdout)
	for _, address := range []*string{&s.S3, &s.GS} {
		if !lines.Scan() {
			return failed(fmt.Errorf("the emulators do not start: %w", lines.Err()))
		}
		*address = lines.Text()
	}
	for name, value := range map[string]string{
		"STORAGE_EMULATOR_HOST": strings.TrimPrefix(s.GS, "http://"),
		"AWS_ACCESS_KEY_ID":     "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1", "AWS_EC2_METADATA_DISABLED": "true",
	} {
		os.Setenv(name, value)
	}
	if ready != nil {
		ready(s)
	}
	return m.Run()
}

func failed(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// Bucket is there in both services.
const Bucket = "spores"

// URL returns the location of an empty store. through, "" for none, is the address
// of a proxy before the S3 server.
func (s Services) URL(service, through string) string {
	location := service + "://" + Bucket + "/" + uuid.NewString()
	if service == "gs" {
		return location + "?anonymous=true"
	}
	if through == "" {
		through = s.S3
	}
	return location + "?region=eu-central-1&use_path_style=true&endpoint=" + through
}
