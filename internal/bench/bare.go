package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/sporevm/spore/internal/guest"
	"github.com/sporevm/spore/internal/guest/api"
)

// bare is a QEMU started by hand, as somebody would from a shell: no cage, no checks, a raw disk file in place of our NBD server. It is the floor that our own
// machines are measured against, so it shares no code with the engine.
type bare struct {
	cmd     *exec.Cmd
	dir     string
	monitor net.Conn
	lines   *bufio.Scanner
}

// bareConfig is what differs between bare machines.
type bareConfig struct {
	memoryMiB int64
	memory    string // file to map privately; empty: anonymous memory
	disk      string // raw file
	kernel    string // set for a boot, with initramfs and args
	initramfs string
	args      string
	incoming  string // file with device state or a whole migration stream
	rawPort   bool   // a second port next to the agent's
}

// answerTimeout is more than any boot takes on a busy host.
const answerTimeout = time.Minute

// lifetime is more than any bare machine is needed for; its monitor is silent afterwards.
const lifetime = 10 * time.Minute

// startBare starts QEMU and returns when its monitor answers.
func startBare(ctx context.Context, scratch string, c bareConfig) (_ *bare, err error) {
	b := &bare{}
	if b.dir, err = os.MkdirTemp(scratch, "bare-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	args := []string{
		"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none",
		"-machine", "microvm,isa-serial=on,suppress-vmdesc=on,memory-backend=ram0", "-global", "migration.send-configuration=off",
		"-smp", "1", "-m", fmt.Sprintf("%dM", c.memoryMiB), "-accel", "tcg", "-cpu", "max,-erms",
		"-chardev", "socket,id=monitor,server=on,wait=off,path=" + b.path("monitor"), "-mon", "chardev=monitor,mode=control",
		"-chardev", "file,id=console,path=" + b.path("console"), "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", "socket,id=agent,server=on,wait=off,path=" + b.path("agent"), "-device", "virtserialport,chardev=agent,name=agent",
	}
	if c.rawPort {
		args = append(args, "-chardev", "socket,id=raw,server=on,wait=off,path="+b.path("raw"), "-device", "virtserialport,chardev=raw,name=raw")
	}
	args = append(args, "-device", "virtio-balloon-device,free-page-reporting=on",
		"-blockdev", "driver=file,node-name=root,filename="+c.disk,
		"-device", "virtio-blk-device,drive=root,logical_block_size=4096,physical_block_size=4096")
	if c.memory != "" {
		args = append(args, "-object", fmt.Sprintf("memory-backend-file,id=ram0,size=%dM,mem-path=%s,share=off", c.memoryMiB, c.memory))
	} else {
		args = append(args, "-object", fmt.Sprintf("memory-backend-ram,id=ram0,size=%dM", c.memoryMiB))
	}
	if c.kernel != "" {
		args = append(args, "-kernel", c.kernel, "-initrd", c.initramfs, "-append", c.args)
	}
	b.cmd = exec.Command("qemu-system-x86_64", args...)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if c.incoming != "" {
		stream, err := os.Open(c.incoming)
		if err != nil {
			return nil, err
		}
		defer stream.Close()
		b.cmd.ExtraFiles = []*os.File{stream}
		b.cmd.Args = append(b.cmd.Args, "-incoming", "fd:3")
	}
	if err := b.cmd.Start(); err != nil {
		b.cmd = nil
		return nil, err
	}
	if b.monitor, err = b.dial(ctx, "monitor"); err != nil {
		return nil, err
	}
	if err := b.monitor.SetDeadline(time.Now().Add(lifetime)); err != nil {
		return nil, err
	}
	b.lines = bufio.NewScanner(b.monitor)
	b.lines.Buffer(nil, 1<<20)
	if !b.lines.Scan() { // the greeting
		return nil, errors.New("QEMU's monitor does not greet")
	}
	return b, b.command("qmp_capabilities", nil)
}

func (b *bare) path(name string) string { return filepath.Join(b.dir, name) }

// dial connects to one of QEMU's sockets as soon as it is there.
func (b *bare) dial(ctx context.Context, name string) (net.Conn, error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", b.path(name))
		if err == nil {
			return conn, nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return nil, fmt.Errorf("connecting to bare QEMU's %s: %w", name, err)
		}
	}
}

// command runs a monitor command and passes over the events before its answer.
func (b *bare) command(name string, args map[string]any) error {
	request, err := json.Marshal(map[string]any{"execute": name, "arguments": args})
	if err != nil {
		return err
	}
	if args == nil {
		request = fmt.Appendf(nil, "{\"execute\":%q}", name)
	}
	if _, err := b.monitor.Write(append(request, '\n')); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for b.lines.Scan() {
		var answer struct {
			Return *json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := json.Unmarshal(b.lines.Bytes(), &answer); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if answer.Error != nil {
			return fmt.Errorf("%s: %s", name, answer.Error.Desc)
		}
		if answer.Return != nil {
			return nil
		}
	}
	return fmt.Errorf("%s: %w", name, io.ErrUnexpectedEOF)
}

// query asks one field of a status command.
func (b *bare) query(command string, out any) error {
	if _, err := fmt.Fprintf(b.monitor, "{\"execute\":%q}\n", command); err != nil {
		return err
	}
	for b.lines.Scan() {
		var answer struct{ Return json.RawMessage }
		if err := json.Unmarshal(b.lines.Bytes(), &answer); err != nil {
			return err
		}
		if answer.Return != nil {
			return json.Unmarshal(answer.Return, out)
		}
	}
	return fmt.Errorf("%s: %w", command, io.ErrUnexpectedEOF)
}

// waitRunning returns when the CPUs run.
func (b *bare) waitRunning() error {
	for {
		var status struct{ Running bool }
		if err := b.query("query-status", &status); err != nil || status.Running {
			return err
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// firstAnswer opens a session with the agent and returns when it has answered the same first request that the engine sends.
func (b *bare) firstAnswer(ctx context.Context) (*guest.Client, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout, fmt.Errorf("a bare machine has not answered in %v", answerTimeout))
	defer cancel()
	conn, err := b.dial(ctx, "agent")
	if err != nil {
		return nil, err
	}
	client := guest.NewClient(conn)
	entropy := make([]byte, 64)
	_, err = client.Wake(ctx, api.Identity{
		Generation: uuid.NewString(), Epoch: 1, Time: time.Now().UnixNano(), Entropy: entropy,
		Hostname: "bare", MachineID: "00000000000000000000000000000001", Context: &api.Context{},
	})
	if err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// close ends the machine.
func (b *bare) close() {
	if b.monitor != nil {
		b.monitor.Close()
	}
	if b.cmd != nil {
		b.cmd.Process.Kill()
		b.cmd.Wait()
	}
	os.RemoveAll(b.dir)
}
