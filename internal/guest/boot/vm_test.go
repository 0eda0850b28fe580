package boot_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sporevm/spore/internal/guest"
)

// workshop is what all tests share: the agent and the probe as built from this very tree, and an initramfs.
type workshop struct {
	dir       string
	kernel    guest.Kernel
	agent     []byte
	initramfs string
	probe     string
}

var shop workshop

func TestMain(m *testing.M) {
	code := func() int {
		dir, err := os.MkdirTemp("", "spore-boot-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		shop.dir = dir
		return m.Run()
	}()
	os.Exit(code)
}

var fillShop = sync.OnceValue(func() error {
	agent, probe := filepath.Join(shop.dir, "agent"), filepath.Join(shop.dir, "probe")
	for out, pkg := range map[string]string{agent: "github.com/sporevm/spore/cmd/spore-agent", probe: "./testdata/probe"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("building %s: %w\n%s", pkg, err, text)
		}
	}
	var err error
	if shop.agent, err = os.ReadFile(agent); err != nil {
		return err
	}
	shop.probe = probe
	if shop.kernel, err = guest.FindKernel(guest.KernelsDir(os.Getenv), "", "amd64"); err != nil {
		return err
	}
	shop.initramfs = filepath.Join(shop.dir, "initramfs")
	f, err := os.Create(shop.initramfs)
	if err != nil {
		return err
	}
	defer f.Close()
	return guest.Initramfs(f, shop.kernel, shop.agent)
})

// needMachines skips a test where no machine can be booted, and says why.
func needMachines(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"qemu-system-x86_64", "mke2fs"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIP: %s is not installed", tool)
		}
	}
	if err := fillShop(); err != nil {
		t.Fatal(err)
	}
}

// disk makes an ext4 file system with the probe in it and what fill adds.
func disk(t *testing.T, fill func(root string)) string {
	t.Helper()
	root := t.TempDir()
	probe, err := os.ReadFile(shop.probe)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "probe"), probe, 0o755); err != nil {
		t.Fatal(err)
	}
	if fill != nil {
		fill(root)
	}
	image := filepath.Join(t.TempDir(), "disk")
	if out, err := exec.Command("mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-d", root, image, "64M").CombinedOutput(); err != nil {
		t.Fatalf("making a disk: %v\n%s", err, out)
	}
	return image
}

// vm is one QEMU process.
type vm struct {
	t       *testing.T
	options vmOptions
	dir     string
	disk    string
	log     *syncBuffer
	done    chan struct{} // closed when QEMU has ended
	kill    func()
	qmp     *qmp
	fresh   bool // has not answered yet
}

type vmOptions struct {
	disk     string
	readOnly bool
	args     string // of the kernel
	network  bool
	from     *frozen // thaw instead of booting
}

// frozen is a stopped machine in files.
type frozen struct{ ram, state, disk string }

const memory = "256M" // little, so that running out of it is quick

var mhz = regexp.MustCompile(`(?m)^cpu MHz\s*:\s*([0-9.]+)$`)

func start(t *testing.T, o vmOptions) *vm {
	t.Helper()
	v := &vm{t: t, options: o, disk: o.disk, log: &syncBuffer{}, fresh: true}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console:\n%s", v.log)
		}
	})
	v.launch()
	return v
}

// launch starts QEMU.
func (v *vm) launch() {
	v.t.Helper()
	t, o := v.t, v.options
	v.dir, v.done = t.TempDir(), make(chan struct{})
	ram, share := filepath.Join(v.dir, "ram"), "on"
	if o.from != nil {
		// A copy each: QEMU punches holes into the file where the guest reports free pages.
		copyFile(t, o.from.ram, ram)
		v.disk = filepath.Join(v.dir, "disk")
		copyFile(t, o.from.disk, v.disk)
		share = "off"
	}
	readOnly := "off"
	if o.readOnly {
		readOnly = "on"
	}
	cmd := exec.Command("qemu-system-x86_64",
		"-M", "microvm,isa-serial=on,suppress-vmdesc=on,memory-backend=ram0", "-global", "migration.send-configuration=off",
		"-object", "memory-backend-file,id=ram0,size="+memory+",mem-path="+ram+",share="+share,
		"-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", memory, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		"-device", "virtio-serial-device",
		"-chardev", "socket,id=agent,path="+v.dir+"/agent,server=on,wait=off", "-device", "virtserialport,chardev=agent,name=agent",
		"-device", "virtio-balloon-device,free-page-reporting=on",
		"-blockdev", "driver=file,node-name=root,filename="+v.disk+",read-only="+readOnly, "-device", "virtio-blk-device,drive=root",
		"-qmp", "unix:"+v.dir+"/qmp,server=on,wait=off",
	)
	if o.network {
		cmd.Args = append(cmd.Args, "-netdev", "user,id=net0", "-device", "virtio-net-device,netdev=net0")
	}
	if o.from != nil {
		state, err := os.Open(o.from.state)
		if err != nil {
			t.Fatal(err)
		}
		defer state.Close()
		cmd.ExtraFiles = []*os.File{state}
		cmd.Args = append(cmd.Args, "-incoming", "fd:3")
	} else {
		cmd.Args = append(cmd.Args, "-kernel", shop.kernel.Path, "-initrd", shop.initramfs, "-append",
			"console=ttyS0 quiet panic=-1 reboot=t random.trust_cpu=on no_timer_check "+timestamps(t)+" "+guest.KernelArgs("", o.readOnly)+" "+o.args)
	}
	cmd.Stdout, cmd.Stderr = v.log, v.log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := v.done
	v.kill = func() {
		cmd.Process.Kill()
		<-done
	}
	t.Cleanup(v.kill)
	go func() {
		cmd.Wait()
		close(done)
	}()
	v.qmp = dialQMP(v)
}

// timestamps spares the guest the calibration of its time-stamp counter, on which it may hang when the host is busy.
func timestamps(t *testing.T) string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	m := mhz.FindSubmatch(info)
	if m == nil {
		return ""
	}
	f, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		t.Fatal(err)
	}
	khz := int64(f * 1000)
	return fmt.Sprintf("tsc=reliable tsc_early_khz=%d lpj=%d", khz, 2*khz)
}

// dial opens the stream to the agent; QEMU makes the socket some time after its start.
func (v *vm) dial(name string) net.Conn {
	v.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unix", filepath.Join(v.dir, name))
		if err == nil {
			return c
		}
		select {
		case <-v.done:
			v.t.Fatalf("QEMU has ended: %s", v.log)
		default:
		}
		if time.Now().After(deadline) {
			v.t.Fatal(err)
		}
	}
}

// boots is how often a machine is booted until it comes up: an emulated one hangs at times on a busy host, before the agent is there.
const boots = 4

// bootPatience is how long one that does not hang may take.
const bootPatience = time.Minute

// session opens a session with the agent and waits until it answers.
func (v *vm) session() *guest.Client {
	v.t.Helper()
	for tries := 1; ; tries++ {
		c := guest.NewClient(v.dial("agent"))
		ctx, cancel := context.WithTimeout(context.Background(), bootPatience)
		err := c.Health(ctx)
		cancel()
		if err == nil {
			v.t.Cleanup(func() { c.Close() })
			v.fresh = false
			return c
		}
		c.Close()
		if !v.fresh || v.options.from != nil || tries == boots {
			v.t.Fatalf("the agent does not answer: %v", err)
		}
		v.t.Logf("boot %d hangs: %v", tries, err)
		v.kill()
		v.launch()
	}
}

// freeze stops the machine and copies all of it into files.
func (v *vm) freeze() *frozen {
	v.t.Helper()
	dir := v.t.TempDir()
	f := &frozen{ram: dir + "/ram", state: dir + "/state", disk: dir + "/disk"}
	v.qmp.run("stop", nil)
	v.qmp.run("xen-save-devices-state", map[string]any{"filename": f.state})
	copyFile(v.t, filepath.Join(v.dir, "ram"), f.ram)
	copyFile(v.t, v.disk, f.disk)
	return f
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "--sparse=always", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copying: %v\n%s", err, out)
	}
}

// ended waits for QEMU's end.
func (v *vm) ended() {
	v.t.Helper()
	for tries := 1; ; tries++ {
		select {
		case <-v.done:
			return
		case <-time.After(patience):
		}
		if !v.fresh || tries == boots {
			v.t.Fatalf("the machine still runs after %v", patience)
		}
		v.t.Logf("boot %d hangs", tries)
		v.kill()
		v.launch()
	}
}

// qmp is a monitor connection.
type qmp struct {
	v *vm
	c net.Conn
	r *bufio.Scanner
}

func dialQMP(v *vm) *qmp {
	v.t.Helper()
	c := v.dial("qmp")
	v.t.Cleanup(func() { c.Close() })
	q := &qmp{v: v, c: c, r: bufio.NewScanner(c)}
	q.run("qmp_capabilities", nil)
	return q
}

func (q *qmp) run(command string, args map[string]any) {
	q.v.t.Helper()
	msg, err := json.Marshal(map[string]any{"execute": command, "arguments": args})
	if args == nil {
		msg, err = json.Marshal(map[string]any{"execute": command})
	}
	if err != nil {
		q.v.t.Fatal(err)
	}
	if _, err := q.c.Write(msg); err != nil {
		q.v.t.Fatal(err)
	}
	for q.r.Scan() {
		if bytes.HasPrefix(q.r.Bytes(), []byte(`{"return"`)) {
			return
		}
		if bytes.HasPrefix(q.r.Bytes(), []byte(`{"error"`)) {
			q.v.t.Fatalf("%s: %s", command, q.r.Text())
		}
	}
	q.v.t.Fatalf("%s: the monitor has gone: %v", command, q.r.Err())
}

// waitRunning returns when a thawed machine's CPUs run: what is sent to its port earlier is lost.
func (q *qmp) waitRunning() {
	q.v.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		if _, err := q.c.Write([]byte(`{"execute":"query-status"}`)); err != nil {
			q.v.t.Fatal(err)
		}
		for q.r.Scan() {
			if bytes.HasPrefix(q.r.Bytes(), []byte(`{"return"`)) {
				break
			}
		}
		if bytes.Contains(q.r.Bytes(), []byte(`"status": "running"`)) {
			return
		}
	}
	q.v.t.Fatal("the thawed machine does not run")
}

// syncBuffer is a buffer that may be read while it is written.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
