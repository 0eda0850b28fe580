package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/sandbox"
	"github.com/sporevm/spore/internal/snapshot"
)

// floor holds what bare machines need to be the same machine as a snapshot: its memory laid out flat, its device state, its disk as a raw file.
type floor struct {
	scratch string
	wake    bareConfig
	boot    bareConfig
}

// newFloor lays out the suite's snapshot.
func (s *engineSuite) newFloor(ctx context.Context) (*floor, error) {
	return newFloor(ctx, s.Host, s.small, s.scratch)
}

// newFloor lays out a snapshot for bare QEMU, in a folder. Called again it uses what is there.
func newFloor(ctx context.Context, host *sandbox.Host, snap *snapshot.Snapshot, scratch string) (*floor, error) {
	mib := snap.Metadata().MemoryBytes >> 20
	f := &floor{scratch: scratch, wake: bareConfig{memoryMiB: mib, disk: filepath.Join(scratch, "disk"), incoming: filepath.Join(scratch, "state")}}
	memory, err := host.Snapshots.FlatMemory(ctx, snap, nil)
	if err != nil {
		return nil, err
	}
	f.wake.memory = memory.Name()
	memory.Close() // only its path is used, as by somebody who has nothing but the file
	state, err := snap.State(ctx)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(f.wake.incoming, state, 0o600); err != nil {
		return nil, err
	}
	disk, err := os.Create(f.wake.disk)
	if err != nil {
		return nil, err
	}
	err = snap.Disk().CopyTo(ctx, disk, nil)
	if err = errors.Join(err, disk.Close()); err != nil {
		return nil, err
	}
	kernel, initramfs, args, err := host.BootFiles(ctx, "amd64", "")
	if err != nil {
		return nil, err
	}
	tsc := snap.Metadata().CPU.TSCKHz
	line := []string{"console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on tsc=reliable no_timer_check",
		fmt.Sprintf("tsc_early_khz=%d lpj=%d", tsc, 2*tsc), args}
	f.boot = bareConfig{memoryMiB: mib, disk: f.wake.disk, kernel: kernel, initramfs: initramfs, args: strings.Join(line, " ")}
	return f, nil
}

// resume starts QEMU on the state file with the memory mapped privately. It returns the time to the agent's first answer, and that of a first command.
func (f *floor) resume(ctx context.Context) (answer, firstExec time.Duration, err error) {
	begin := time.Now()
	b, client, err := f.woken(ctx)
	if err != nil {
		return 0, 0, err
	}
	defer b.close()
	defer client.Close()
	answer = time.Since(begin)
	begin = time.Now()
	if err := runTrue(ctx, client); err != nil {
		return 0, 0, err
	}
	return answer, time.Since(begin), nil
}

// woken starts QEMU on the state file with the memory mapped privately, and returns when the agent has answered.
func (f *floor) woken(ctx context.Context) (*bare, *guest.Client, error) {
	b, err := startBare(ctx, f.scratch, f.wake)
	if err != nil {
		return nil, nil, err
	}
	var client *guest.Client
	if err = b.waitRunning(); err == nil {
		client, err = b.firstAnswer(ctx)
	}
	if err != nil {
		b.close()
		return nil, nil, err
	}
	return b, client, nil
}

// runTrue runs the least command there is, in a shell.
func runTrue(ctx context.Context, client *guest.Client) error {
	process, err := client.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", "true"}})
	if err != nil {
		return err
	}
	status, err := process.Wait()
	if err == nil && !status.Success() {
		err = fmt.Errorf("true: %v", status)
	}
	return err
}

// coldBoot boots the machine and returns the time to the agent's first answer.
func (f *floor) coldBoot(ctx context.Context) (time.Duration, error) {
	begin := time.Now()
	b, client, err := f.bootMachine(ctx, f.boot)
	if err != nil {
		return 0, err
	}
	took := time.Since(begin)
	client.Close()
	b.close()
	return took, nil
}

func (f *floor) bootMachine(ctx context.Context, c bareConfig) (*bare, *guest.Client, error) {
	b, err := startBare(ctx, f.scratch, c)
	if err != nil {
		return nil, nil, err
	}
	client, err := b.firstAnswer(ctx)
	if err != nil {
		b.close()
		return nil, nil, err
	}
	return b, client, nil
}

// saveStream thaws the snapshot and has QEMU write all of the machine, RAM included, to a file, before anybody has talked to it.
func (f *floor) saveStream(ctx context.Context, path string) error {
	b, err := startBare(ctx, f.scratch, f.wake)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.waitRunning(); err != nil {
		return err
	}
	if err := b.command("stop", nil); err != nil {
		return err
	}
	if err := b.command("migrate-set-parameters", map[string]any{"max-bandwidth": 8 << 30}); err != nil {
		return err
	}
	if err := b.command("migrate", map[string]any{"uri": "exec:cat >" + path}); err != nil {
		return err
	}
	for {
		var migration struct{ Status string }
		if err := b.query("query-migrate", &migration); err != nil {
			return err
		}
		switch migration.Status {
		case "completed":
			return nil
		case "failed", "cancelled":
			return fmt.Errorf("QEMU's migration to a file has %s", migration.Status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// restoreStream starts QEMU on a whole stream and returns the time to the agent's first answer.
func (f *floor) restoreStream(ctx context.Context, path string) (time.Duration, error) {
	begin := time.Now()
	b, err := startBare(ctx, f.scratch, bareConfig{memoryMiB: f.wake.memoryMiB, disk: f.wake.disk, incoming: path})
	if err != nil {
		return 0, err
	}
	defer b.close()
	for {
		// The stream remembers that the machine was stopped.
		var status struct{ Status string }
		if err := b.query("query-status", &status); err != nil {
			return 0, err
		}
		if status.Status == "paused" {
			break
		}
		if status.Status != "inmigrate" {
			return 0, fmt.Errorf("QEMU's restore has ended as %s", status.Status)
		}
		time.Sleep(time.Millisecond)
	}
	if err := b.command("cont", nil); err != nil {
		return 0, err
	}
	client, err := b.firstAnswer(ctx)
	if err != nil {
		return 0, err
	}
	defer client.Close()
	return time.Since(begin), nil
}

// transfer measures files into and out of the guest against the same bytes over a bare port of the same machine.
func (s *engineSuite) transfer(ctx context.Context) error {
	f, err := s.newFloor(ctx)
	if err != nil {
		return err
	}
	config := f.boot
	config.rawPort = true
	b, client, err := f.bootMachine(ctx, config)
	if err != nil {
		return err
	}
	defer b.close()
	defer client.Close()
	raw, err := b.dial(ctx, "raw")
	if err != nil {
		return err
	}
	defer raw.Close()
	port, err := rawDevice(ctx, client)
	if err != nil {
		return err
	}
	t := &transferRun{client: client, raw: raw, port: port}
	var fileIn, fileOut, rawIn, rawOut Samples
	for i := range s.Iterations + 1 {
		for _, m := range []struct {
			into *Samples
			run  func(context.Context) error
		}{{&fileIn, t.fileIn}, {&rawIn, t.rawIn}, {&fileOut, t.fileOut}, {&rawOut, t.rawOut}} {
			begin := time.Now()
			if err := m.run(ctx); err != nil {
				return err
			}
			if i > 0 {
				*m.into = append(*m.into, float64(transfer>>20)/time.Since(begin).Seconds())
			}
		}
	}
	s.report.Add("file_into_guest", "MiB/s", fileIn)
	s.report.Add("raw_into_guest", "MiB/s", rawIn)
	s.report.Add("file_out_of_guest", "MiB/s", fileOut)
	s.report.Add("raw_out_of_guest", "MiB/s", rawOut)
	s.report.Ratio("transfer_over_raw_stream", min(fileIn.Median()/rawIn.Median(), fileOut.Median()/rawOut.Median()), 1)
	return nil
}

// transferRun moves the same number of bytes in four ways. The file lies in the guest's memory: its disk is not what is measured.
type transferRun struct {
	client *guest.Client
	raw    io.ReadWriter
	port   string
}

const transferFile = "/dev/shm/transfer"

func (t *transferRun) fileIn(ctx context.Context) error {
	return t.client.WriteFile(ctx, transferFile, io.LimitReader(pattern{}, transfer), guest.WriteOptions{Size: transfer})
}

func (t *transferRun) fileOut(ctx context.Context) error {
	r, _, err := t.client.ReadFile(ctx, transferFile)
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err == nil && n != transfer {
		err = fmt.Errorf("read %d bytes of %d", n, transfer)
	}
	return err
}

func (t *transferRun) rawIn(ctx context.Context) error {
	process, err := t.shell(ctx, fmt.Sprintf("head -c %d <%s >%s", transfer, t.port, transferFile))
	if err != nil {
		return err
	}
	if _, err := io.Copy(onlyWriter{t.raw}, io.LimitReader(pattern{}, transfer)); err != nil {
		return err
	}
	return finish(process)
}

func (t *transferRun) rawOut(ctx context.Context) error {
	process, err := t.shell(ctx, fmt.Sprintf("cat %s >%s", transferFile, t.port))
	if err != nil {
		return err
	}
	if _, err := io.CopyN(io.Discard, t.raw, transfer); err != nil {
		return err
	}
	return finish(process)
}

func (t *transferRun) shell(ctx context.Context, line string) (*guest.Process, error) {
	return t.client.Start(ctx, guest.Command{Args: []string{"/bin/sh", "-c", line}})
}

func finish(p *guest.Process) error {
	status, err := p.Wait()
	if err == nil && !status.Success() {
		err = fmt.Errorf("the guest's side: %v", status)
	}
	return err
}

// rawDevice finds the second port's device in the guest.
func rawDevice(ctx context.Context, client *guest.Client) (string, error) {
	var out strings.Builder
	process, err := client.Start(ctx, guest.Command{
		Args:   []string{"/bin/sh", "-c", "for n in /sys/class/virtio-ports/*/name; do read name <$n; [ $name = raw ] && basename $(dirname $n); done; true"},
		Stdout: &out,
	})
	if err != nil {
		return "", err
	}
	if err := finish(process); err != nil {
		return "", err
	}
	name := strings.TrimSpace(out.String())
	if name == "" {
		return "", errors.New("the guest has no port named raw")
	}
	return "/dev/" + name, nil
}

// pattern is an endless stream of bytes that don't compress to nothing.
type pattern struct{}

func (pattern) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(i ^ i>>8)
	}
	return len(p), nil
}

type onlyWriter struct{ io.Writer }
