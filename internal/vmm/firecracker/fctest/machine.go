package fctest

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// What the guest does, as vmmtest's do: it counts at 4 MiB, and at each step writes a dot and a page from 8 MiB on, up to 256 of them.
const (
	pageSize  = 4096
	counterAt = 4 << 20
	pagesAt   = 8 << 20
	pagesEnd  = 9 << 20
	step      = 1 << 14

	cmdlineAt = 0x20000
	balloonAt = 16 << 20 // what the guest gives back when it is asked to
	agentPort = 1024     // what the guest listens on; it says what it is told
)

// machine is a memory in which somebody counts.
type machine struct {
	id     string
	format int
	config struct {
		VCPUs     int   `json:"vcpu_count"`
		MemoryMiB int64 `json:"mem_size_mib"`
		Track     bool  `json:"track_dirty_pages"`
	}
	source struct {
		Kernel    string `json:"kernel_image_path"`
		Initramfs string `json:"initrd_path"`
		Args      string `json:"boot_args"`
	}
	drives  []string
	taps    map[string]string
	vsock   string
	balloon json.RawMessage
	actions int // requests for some since metrics were written last
	log     *os.File
	metrics *os.File

	mu       sync.Mutex // held while the guest counts
	memory   []byte
	fromFile bool
	next     int64          // page that is written next
	dirty    map[int64]bool // pages that were written since the last snapshot
	stopped  *sync.Cond
	running  bool
}

// state is the device state.
type state struct {
	Fake      string            `json:"fake"`
	Format    int               `json:"format"`
	MemoryMiB int64             `json:"memory_mib"`
	Next      int64             `json:"next"`
	Vsock     string            `json:"vsock"`
	Drives    []string          `json:"drives"`
	Taps      map[string]string `json:"taps"`
	Balloon   json.RawMessage   `json:"balloon,omitempty"`
}

const fakeMark = "spore's test machine"

func (m *machine) boot() error {
	if m.source.Kernel == "" {
		return errors.New("there is no kernel")
	}
	head := make([]byte, 5)
	f, err := os.Open(m.source.Kernel)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.ReadFull(f, head); err != nil || string(head) != "\x7fELF\x02" {
		return errors.New("the kernel is not a 64-bit ELF file")
	}
	if m.config.MemoryMiB == 0 {
		m.config.MemoryMiB = 128
	}
	m.memory, err = unix.Mmap(-1, 0, int(m.config.MemoryMiB<<20), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return err
	}
	copy(m.memory[cmdlineAt:], m.source.Args+" virtio_mmio.device=4K@0xc0001000:5")
	m.dirty = map[int64]bool{cmdlineAt / pageSize: true}
	m.next = pagesAt
	return m.start()
}

// start starts the guest, who waits to be let run.
func (m *machine) start() error {
	m.stopped = sync.NewCond(&m.mu)
	go m.count()
	if m.vsock == "" {
		return nil
	}
	listener, err := net.Listen("unix", m.vsock)
	if err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go m.connect(conn)
		}
	}()
	return nil
}

// connect is the guest's listener: it echoes.
func (m *machine) connect(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil || line != fmt.Sprintf("CONNECT %d\n", agentPort) {
		return
	}
	fmt.Fprintf(conn, "OK 1073741824\nhello\n")
	io.Copy(conn, in)
}

func (m *machine) count() {
	for {
		m.mu.Lock()
		for !m.running {
			m.stopped.Wait()
		}
		for range 256 {
			n := binary.LittleEndian.Uint32(m.memory[counterAt:]) + 1
			binary.LittleEndian.PutUint32(m.memory[counterAt:], n)
			m.dirty[counterAt/pageSize] = true
			if n%step != 0 {
				continue
			}
			fmt.Print(".")
			if m.next < pagesEnd {
				binary.LittleEndian.PutUint32(m.memory[m.next:], n)
				m.dirty[m.next/pageSize] = true
				m.next += pageSize
			}
		}
		m.mu.Unlock()
		time.Sleep(50 * time.Microsecond)
	}
}

// run lets the guest run, or waits until it stands still.
func (m *machine) run(yes bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running = yes
	m.stopped.Broadcast()
}

// save writes a snapshot. A real one syncs both files.
func (m *machine) save(body []byte) error {
	var request struct {
		State  string `json:"snapshot_path"`
		Memory string `json:"mem_file_path"`
		Type   string `json:"snapshot_type"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return err
	}
	if request.Type == "Diff" && m.log != nil {
		fmt.Fprintln(m.log, "warning: differences are a preview")
	}
	data, err := json.Marshal(state{fakeMark, m.format, m.config.MemoryMiB, m.next, m.vsock, m.drives, m.taps, m.balloon})
	if err != nil {
		return err
	}
	if err := os.WriteFile(request.State, data, 0o600); err != nil {
		return err
	}
	out, err := os.OpenFile(request.Memory, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	if info, err := out.Stat(); err != nil {
		return err
	} else if info.Size() != int64(len(m.memory)) {
		if err := errors.Join(out.Truncate(0), out.Truncate(int64(len(m.memory)))); err != nil {
			return err
		}
	}
	for page := range int64(len(m.memory) / pageSize) {
		// Without tracking, a Diff has every page that is in memory; all of them are in that case.
		if request.Type == "Diff" && m.config.Track && !m.dirty[page] {
			continue
		}
		if _, err := out.WriteAt(m.memory[page*pageSize:(page+1)*pageSize], page*pageSize); err != nil {
			return err
		}
	}
	clear(m.dirty)
	return nil
}

func (m *machine) load(body []byte) error {
	var request struct {
		State   string `json:"snapshot_path"`
		Old     string `json:"mem_file_path"`
		Backend struct {
			Type string `json:"backend_type"`
			Path string `json:"backend_path"`
		} `json:"mem_backend"`
		TrackOld   bool `json:"enable_diff_snapshots"`
		Track      bool `json:"track_dirty_pages"`
		Interfaces []struct {
			ID  string `json:"iface_id"`
			Tap string `json:"host_dev_name"`
		} `json:"network_overrides"`
		Vsock *struct {
			Path string `json:"uds_path"`
		} `json:"vsock_override"`
	}
	if err := json.Unmarshal(body, &request); err != nil {
		return err
	}
	data, err := os.ReadFile(request.State)
	if err != nil {
		return err
	}
	var st state
	if json.Unmarshal(data, &st) != nil || st.Fake != fakeMark {
		return errors.New("the state is none")
	}
	if st.Format > m.format {
		return fmt.Errorf("the state's format is v%d.0.0, newer than v%d.0.0", st.Format, m.format)
	}
	m.config.MemoryMiB, m.config.Track = st.MemoryMiB, request.Track || request.TrackOld
	m.next, m.vsock, m.drives, m.taps, m.balloon, m.dirty = st.Next, st.Vsock, st.Drives, st.Taps, st.Balloon, map[int64]bool{}
	for _, o := range request.Interfaces {
		if _, ok := m.taps[o.ID]; !ok {
			return errors.New("the state has no such network device")
		}
		m.taps[o.ID] = o.Tap
	}
	if request.Vsock != nil {
		if m.vsock == "" {
			return errors.New("the state has no vsock")
		}
		m.vsock = request.Vsock.Path
	}
	if err := writable(m.drives...); err != nil {
		return err
	}
	size := int(st.MemoryMiB << 20)
	if request.Backend.Type == "Uffd" {
		m.memory, err = servedMemory(request.Backend.Path, size)
	} else {
		m.memory, err = m.mapFile(request.Backend.Path+request.Old, size)
	}
	if err != nil {
		return err
	}
	return m.start()
}

func (m *machine) mapFile(path string, size int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	m.fromFile = true
	return unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_NORESERVE)
}

// discard gives n bytes back as Firecracker does: anonymous memory is dropped, and over a file's anonymous memory is mapped.
func (m *machine) discard(n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	n = min(n, int64(len(m.memory))-balloonAt)
	if n <= 0 {
		return nil
	}
	if !m.fromFile {
		return unix.Madvise(m.memory[balloonAt:balloonAt+n], unix.MADV_DONTNEED)
	}
	return mapAnonymous(m.memory[balloonAt : balloonAt+n])
}

func (m *machine) flushMetrics() error {
	if m.metrics == nil {
		return nil
	}
	var line bytes.Buffer
	json.NewEncoder(&line).Encode(map[string]any{"utc_timestamp_ms": time.Now().UnixMilli(), "vmm": map[string]int{"panic_count": 0}, "put_api_requests": map[string]int{"actions_count": m.actions}})
	m.actions = 0
	_, err := m.metrics.Write(line.Bytes())
	return err
}
