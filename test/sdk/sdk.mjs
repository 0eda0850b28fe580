// What users of the public sandbox SDK do, against a daemon that sdk_test.go has started. The environment says where it is, as the SDK wants it
// (E2B_API_URL, E2B_SANDBOX_URL, E2B_API_KEY), and TEMPLATE, a template by name: busybox, and /bin/server.
import assert from 'node:assert/strict'
import dns from 'node:dns'
import test from 'node:test'
import { BuildError, CommandExitError, FileNotFoundError, FileType, FilesystemEventType, NotFoundError, Sandbox, SandboxNotFoundError, Template, TimeoutError } from 'e2b'

const template = process.env.TEMPLATE
const port = new URL(process.env.E2B_API_URL).port
const minutes = (n) => n * 60_000

// Browsers take every name below localhost for this machine; Node asks a resolver, which may not.
const { lookup } = dns
dns.lookup = (name, ...rest) => lookup(name.endsWith('.localhost') ? 'localhost' : name, ...rest)

// until waits for something that comes about by itself. The runner's own time limit ends what never does.
async function until(holds) {
  for (;;) {
    const value = await holds()
    if (value) return value
    await new Promise((done) => setTimeout(done, 50))
  }
}

// all is what a paginator gives, page by page.
async function all(paginator) {
  const found = []
  let pages = 0
  while (paginator.hasNext) {
    found.push(...(await paginator.nextItems()))
    pages++
  }
  return { found, pages }
}

const sandbox = await Sandbox.create(template, { timeoutMs: minutes(10), metadata: { test: 'sdk', 'a key': 'a&b=c' }, envs: { GREETING: 'hello' }, requestTimeoutMs: minutes(3) })
const slow = { requestTimeoutMs: minutes(3) }
test.after(() => sandbox.kill(slow))

test('commands in the foreground', async () => {
  const out = []
  const result = await sandbox.commands.run('echo "$GREETING $WHO"; echo oops >&2; pwd', { envs: { WHO: 'world' }, cwd: '/tmp', onStdout: (s) => out.push(s), timeoutMs: minutes(2) })
  assert.equal(result.stdout, 'hello world\n/tmp\n')
  assert.equal(result.stderr, 'oops\n')
  assert.equal(result.exitCode, 0)
  assert.equal(out.join(''), result.stdout)
  await assert.rejects(sandbox.commands.run('exit 7'), (e) => e instanceof CommandExitError && e.exitCode === 7)
  assert.equal((await sandbox.commands.run('id -un', { user: 'app' })).stdout, 'app\n')
  await assert.rejects(sandbox.commands.run('true', { user: 'nobody-has-this-name' }))
})

test('much output arrives whole', async () => {
  const { stdout } = await sandbox.commands.run('seq 1 20000', { timeoutMs: minutes(2) })
  assert.equal(stdout.length, 108894)
  assert.ok(stdout.endsWith('\n20000\n'))
})

test('commands in the background, with input', async () => {
  const lines = []
  const command = await sandbox.commands.run('while read line; do echo "got $line"; done; echo end', { background: true, stdin: true, onStdout: (s) => lines.push(s), timeoutMs: minutes(5) })
  const listed = await sandbox.commands.list()
  assert.ok(listed.some((p) => p.pid === command.pid))
  await sandbox.commands.sendStdin(command.pid, 'one\n')
  await until(() => lines.join('') === 'got one\n')
  await command.disconnect()
  const again = await sandbox.commands.connect(command.pid, { timeoutMs: minutes(5) })
  await sandbox.commands.sendStdin(command.pid, 'two\n')
  await sandbox.commands.closeStdin(command.pid)
  const result = await again.wait()
  assert.equal(result.exitCode, 0)
  assert.ok(result.stdout.endsWith('got two\nend\n'), result.stdout)
})

test('kill and time limits', async () => {
  const command = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: minutes(5) })
  assert.equal(await command.kill(), true)
  await assert.rejects(command.wait())
  assert.equal(await sandbox.commands.kill(command.pid), false)
  await assert.rejects(sandbox.commands.run('sleep 600', { timeoutMs: 1500 }), TimeoutError)
})

test('a terminal', async () => {
  let seen = ''
  const terminal = await sandbox.pty.create({ cols: 80, rows: 24, onData: (d) => { seen += new TextDecoder().decode(d) }, timeoutMs: minutes(5) })
  const type = (s) => sandbox.pty.sendInput(terminal.pid, new TextEncoder().encode(s))
  await type('stty size; tty\n')
  await until(() => seen.includes('24 80') && seen.includes('/dev/pts/'))
  await sandbox.pty.resize(terminal.pid, { cols: 100, rows: 40 })
  await type('stty size\n')
  await until(() => seen.includes('40 100'))
  await type('exit 3\n')
  await assert.rejects(terminal.wait(), (e) => e instanceof CommandExitError && e.exitCode === 3)
  const other = await sandbox.pty.create({ cols: 80, rows: 24, onData: () => {}, timeoutMs: minutes(5) })
  assert.equal(await sandbox.pty.kill(other.pid), true)
})

test('files', async () => {
  const { files } = sandbox
  const written = await files.write('/tmp/dir/file.txt', 'some text', { metadata: { author: 'me' } })
  assert.equal(written.path, '/tmp/dir/file.txt')
  assert.equal(await files.read('/tmp/dir/file.txt'), 'some text')
  const bytes = new Uint8Array(300_000).map((_, i) => i * 7)
  await files.write('/tmp/dir/bytes', bytes.buffer)
  assert.deepEqual(await files.read('/tmp/dir/bytes', { format: 'bytes' }), bytes)
  const stream = await files.read('/tmp/dir/bytes', { format: 'stream' })
  let length = 0
  for await (const chunk of stream) length += chunk.length
  assert.equal(length, bytes.length)
  await files.write([{ path: '/tmp/dir/many/a', data: 'a' }, { path: '/tmp/dir/many/b', data: new Blob(['b']) }])
  const entries = await files.list('/tmp/dir', { depth: 2 })
  assert.deepEqual(entries.map((e) => e.path).sort(), ['/tmp/dir/bytes', '/tmp/dir/file.txt', '/tmp/dir/many', '/tmp/dir/many/a', '/tmp/dir/many/b'])
  const info = await files.getInfo('/tmp/dir/file.txt')
  assert.equal(info.type, FileType.FILE)
  assert.equal(info.size, 9)
  assert.equal(info.metadata?.author, 'me')
  assert.equal(await files.makeDir('/tmp/dir/new'), true)
  assert.equal(await files.makeDir('/tmp/dir/new'), false)
  const moved = await files.rename('/tmp/dir/file.txt', '/tmp/dir/new/name.txt')
  assert.equal(moved.path, '/tmp/dir/new/name.txt')
  assert.equal(await files.exists('/tmp/dir/file.txt'), false)
  assert.equal(await files.exists('/tmp/dir/new/name.txt'), true)
  await files.remove('/tmp/dir')
  assert.equal(await files.exists('/tmp/dir'), false)
  await assert.rejects(files.read('/tmp/none'), FileNotFoundError)
  await files.write('/home/app/mine', 'mine', { user: 'app' })
  assert.equal((await files.getInfo('/home/app/mine')).owner, 'app')
  assert.equal(await files.read('mine', { user: 'app' }), 'mine')
})

test('a directory is watched', async () => {
  await sandbox.files.makeDir('/tmp/watched/below')
  const events = []
  const handle = await sandbox.files.watchDir('/tmp/watched', (e) => events.push(e), { recursive: true, includeEntry: true, timeoutMs: minutes(5) })
  await sandbox.files.write('/tmp/watched/below/file', 'x')
  // What an entry tells is looked up when its event is: a file that has moved on by then has none.
  await until(() => events.some((e) => e.entry?.path === '/tmp/watched/below/file'))
  await sandbox.files.rename('/tmp/watched/below/file', '/tmp/watched/renamed')
  await sandbox.files.remove('/tmp/watched/renamed')
  const saw = (type, name) => events.some((e) => e.type === type && e.name === name)
  await until(() => saw(FilesystemEventType.CREATE, 'below/file') && saw(FilesystemEventType.WRITE, 'below/file') && saw(FilesystemEventType.REMOVE, 'renamed'))
  await handle.stop()
})

test('signed links to files', async () => {
  const direct = (url) => url.replace(process.env.E2B_SANDBOX_URL, `http://49983-${sandbox.sandboxId}.localhost:${port}`)
  const up = await sandbox.uploadUrl('/tmp/uploaded', { useSignatureExpiration: 60 })
  const form = new FormData()
  form.append('file', new Blob(['by link']), 'uploaded')
  const res = await fetch(direct(up), { method: 'POST', body: form })
  assert.equal(res.status, 200, await res.text())
  const down = direct(await sandbox.downloadUrl('/tmp/uploaded'))
  assert.equal(await (await fetch(down)).text(), 'by link')
  assert.equal((await fetch(down.replace('uploaded', 'another'))).status, 401)
})

test('ports, streams and websockets', async () => {
  await sandbox.commands.run('/bin/server 8080', { background: true, timeoutMs: minutes(9) })
  const host = sandbox.getHost(8080)
  assert.equal(host, `8080-${sandbox.sandboxId}.localhost:${port}`)
  await until(async () => (await fetch(`http://${host}/hello?q=1`)).status === 200)
  assert.equal(await (await fetch(`http://${host}/hello?q=1`)).text(), `hello /hello?q=1 from ${host}\n`)
  const events = await fetch(`http://${host}/events`)
  const reader = events.body.getReader()
  for (let i = 0; i < 3; i++) {
    const { value } = await reader.read()
    assert.equal(new TextDecoder().decode(value), `data: ${i}\n\n`)
    await fetch(`http://${host}/next`) // the server says the next only now
  }
  await reader.cancel()
  const socket = new WebSocket(`ws://${host}/ws`)
  const said = []
  socket.onmessage = (m) => said.push(m.data)
  await new Promise((done, failed) => { socket.onopen = done; socket.onerror = failed })
  socket.send('first')
  await until(() => said.length === 1)
  socket.send('x'.repeat(20_000))
  await until(() => said.length === 2)
  assert.deepEqual([said[0], said[1].length], ['first', 20_000])
  socket.close()
  const nobody = await fetch(`http://${sandbox.getHost(9)}/`)
  assert.equal(nobody.status, 502)
  assert.match((await nobody.json()).message, /nothing listens/)
})

test('ports that want a token', async () => {
  const hidden = await Sandbox.create(template, { timeoutMs: minutes(5), network: { allowPublicTraffic: false }, ...slow })
  const reach = async (s, token) => (await fetch(`http://${s.getHost(8080)}/hello`, { headers: token ? { 'e2b-traffic-access-token': token } : {} })).status
  try {
    assert.ok(hidden.trafficAccessToken)
    assert.equal(sandbox.trafficAccessToken, undefined)
    assert.equal((await hidden.getInfo()).network.allowPublicTraffic, false)
    await hidden.commands.run('/bin/server 8080', { background: true, timeoutMs: minutes(4) }) // the agent wants its own token, as ever
    await until(async () => (await reach(hidden, hidden.trafficAccessToken)) === 200)
    assert.deepEqual([await reach(hidden), await reach(hidden, hidden.envdAccessToken)], [403, 403])
    const opened = (headers) => new Promise((done) => {
      const socket = new WebSocket(`ws://${hidden.getHost(8080)}/ws`, { headers })
      socket.onopen = () => { socket.close(); done(true) }
      socket.onerror = () => done(false)
    })
    assert.deepEqual([await opened({}), await opened({ 'e2b-traffic-access-token': hidden.trafficAccessToken })], [false, true])
    assert.equal(await hidden.pause(slow), true)
    const woken = await Sandbox.connect(hidden.sandboxId, { timeoutMs: minutes(5), ...slow })
    assert.equal(woken.trafficAccessToken, hidden.trafficAccessToken)
    assert.deepEqual([await reach(woken), await reach(woken, woken.trafficAccessToken)], [403, 200])
    const [fork] = await woken.fork({ timeoutMs: minutes(5), ...slow })
    try {
      assert.ok(fork.trafficAccessToken)
      assert.notEqual(fork.trafficAccessToken, woken.trafficAccessToken)
      assert.deepEqual([await reach(fork, woken.trafficAccessToken), await reach(fork, fork.trafficAccessToken)], [403, 200])
    } finally {
      await fork.kill(slow)
    }
  } finally {
    await hidden.kill(slow)
  }
})

test('what it is, and when it ends', async () => {
  const info = await sandbox.getInfo()
  assert.equal(info.sandboxId, sandbox.sandboxId)
  assert.equal(info.name, template)
  assert.equal(info.state, 'running')
  assert.deepEqual(info.metadata, { test: 'sdk', 'a key': 'a&b=c' })
  assert.deepEqual(info.lifecycle, { onTimeout: 'kill', autoResume: false })
  await sandbox.setTimeout(minutes(20))
  const later = await sandbox.getInfo()
  assert.ok(later.endAt - info.endAt > minutes(5), `${info.endAt} ${later.endAt}`)
  assert.equal(await sandbox.isRunning(), true)
  const metrics = await until(async () => { const m = await sandbox.getMetrics(); return m.length > 0 && m })
  assert.ok(metrics[0].memTotal > 0 && metrics[0].cpuCount >= 1 && metrics[0].diskTotal > 0, JSON.stringify(metrics[0]))
  const logs = await (await fetch(`${process.env.E2B_API_URL}/v2/sandboxes/${sandbox.sandboxId}/logs`, { headers: { 'X-API-Key': process.env.E2B_API_KEY } })).json()
  assert.ok(logs.logs.length > 0)
})

test('pause, resume, connect', async () => {
  await sandbox.commands.run('n=0; while :; do n=$((n+1)); echo $n > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.1; done', { background: true, timeoutMs: 0 })
  await sandbox.files.write('/tmp/kept', 'kept')
  await until(() => sandbox.files.exists('/tmp/n'))
  const before = Number(await sandbox.files.read('/tmp/n'))
  assert.equal(await sandbox.pause(slow), true)
  assert.equal(await sandbox.pause(slow), false)
  assert.equal((await sandbox.getInfo()).state, 'paused')
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(sandbox.commands.run('true'))
  const again = await Sandbox.connect(sandbox.sandboxId, { timeoutMs: minutes(10), ...slow })
  assert.equal(await again.files.read('/tmp/kept'), 'kept')
  const n = () => again.files.read('/tmp/n').then(Number)
  const after = await n()
  assert.ok(after >= before, `${after} after ${before}`)
  await until(async () => (await n()) > after)
  await sandbox.connect(slow) // running: nothing happens
  assert.equal(await sandbox.isRunning(), true)
})

test('what it may reach', async () => {
  // The template has no network: that it reaches nothing is true, and that it should reach something is refused.
  await sandbox.updateNetwork({ allowInternetAccess: false })
  await sandbox.updateNetwork({ denyOut: ['10.0.0.0/8'] })
  await sandbox.updateNetwork({})
  await assert.rejects(sandbox.updateNetwork({ allowOut: ['192.0.2.7'] }), /400.*--net tap/)
  await assert.rejects(sandbox.updateNetwork({ denyOut: ['nowhere'] }), /400.*nowhere/)
})

test('time that is up at once', async () => {
  const short = await Sandbox.create(template, { timeoutMs: minutes(5), ...slow })
  await short.setTimeout(0)
  await until(async () => !(await short.isRunning()))
  assert.equal(await short.kill(slow), false)
})

test('forks', async () => {
  await sandbox.files.write('/tmp/generation', 'parent')
  const forks = await sandbox.fork({ count: 2, timeoutMs: minutes(5), ...slow })
  try {
    for (const fork of forks) {
      assert.ok(fork instanceof Sandbox, String(fork))
      assert.equal(await fork.files.read('/tmp/generation'), 'parent')
      await fork.files.write('/tmp/generation', fork.sandboxId)
    }
    assert.equal(await sandbox.files.read('/tmp/generation'), 'parent')
    assert.equal(await forks[0].files.read('/tmp/generation'), forks[0].sandboxId)
    assert.notEqual(await forks[0].files.read('/proc/sys/kernel/random/uuid'), await forks[1].files.read('/proc/sys/kernel/random/uuid'))

    const { found, pages } = await all(Sandbox.list({ limit: 1 }))
    assert.deepEqual([found.length, pages], [3, 3])
    const { found: mine } = await all(Sandbox.list({ query: { metadata: { 'a key': 'a&b=c' }, state: ['running'] } }))
    assert.ok(mine.some((s) => s.sandboxId === sandbox.sandboxId))
    const { found: oldest } = await all(Sandbox.list({ order: 'asc', query: { state: ['running', 'paused'], template } }))
    assert.equal(oldest[0].sandboxId, sandbox.sandboxId)
  } finally {
    for (const fork of forks) if (fork instanceof Sandbox) await fork.kill(slow)
  }
})

let frozen

test('snapshots are templates', async () => {
  const snapshot = await sandbox.createSnapshot({ name: 'sdk-snapshot', ...slow })
  const { found } = await all(sandbox.listSnapshots())
  assert.ok(found.some((s) => s.snapshotId === snapshot.snapshotId), JSON.stringify(found))
  const child = await Sandbox.create('sdk-snapshot', { timeoutMs: minutes(5), ...slow })
  assert.equal(await child.files.read('/tmp/kept'), 'kept')
  await child.kill(slow)
  // The sandbox itself goes on from it.
  await assert.rejects(Sandbox.deleteSnapshot(snapshot.snapshotId), /409/)
  frozen = snapshot.snapshotId
})

test('a request wakes one that wakes by itself', async () => {
  const sleeper = await Sandbox.create(template, { timeoutMs: minutes(5), lifecycle: { onTimeout: 'pause', autoResume: true }, ...slow })
  try {
    await sleeper.files.write('/tmp/dream', 'kept')
    assert.equal(await sleeper.pause(slow), true)
    const reads = await Promise.all([1, 2, 3].map(() => sleeper.files.read('/tmp/dream', slow)))
    assert.deepEqual(reads, ['kept', 'kept', 'kept'])
    assert.equal((await sleeper.getInfo()).state, 'running')
  } finally {
    await sleeper.kill(slow)
  }
})

test('templates are built', async () => {
  const logs = []
  const recipe = Template({ fileContextPath: new URL('testdata/context', import.meta.url).pathname })
    .fromTemplate(template)
    .copy('app', '/opt/app', { user: 'app', mode: 0o750 })
    .setEnvs({ FLAVOUR: 'sweet' })
    .setWorkdir('/opt/app')
    .runCmd('cat one.txt below/two.txt > both && id -un > who', { user: 'app' })
    .setStartCmd('n=0; while :; do n=$((n+1)); echo $n > /tmp/ticks.new; mv /tmp/ticks.new /tmp/ticks; sleep 0.1; done', 'test -s /tmp/ticks')
  const built = await Template.build(recipe, 'sdk-built', { cpuCount: 1, memoryMB: 256, onBuildLogs: (e) => logs.push(e.message) })
  assert.equal(await Template.exists('sdk-built'), true)
  assert.ok(logs.some((m) => /ready/.test(m)), logs.join())
  await Template.assignTags('sdk-built', ['v1', 'old'])
  await Template.removeTags('sdk-built', 'old')
  const tags = await Template.getTags('sdk-built')
  assert.deepEqual(tags.map((t) => [t.tag, t.buildId]), [['default', built.buildId], ['v1', built.buildId]])
  const made = await Sandbox.create('sdk-built:v1', { timeoutMs: minutes(5), ...slow })
  try {
    assert.equal(await made.files.read('/opt/app/both'), 'one\ntwo\n')
    assert.equal(await made.files.read('/opt/app/who'), 'app\n')
    const info = await made.files.getInfo('/opt/app/one.txt')
    assert.deepEqual([info.owner, info.permissions], ['app', '-rwxr-x---'])
    assert.equal((await made.commands.run('echo $FLAVOUR in $PWD')).stdout, 'sweet in /opt/app\n')
    const n = Number(await made.files.read('/tmp/ticks'))
    await until(async () => Number(await made.files.read('/tmp/ticks')) > n)
  } finally {
    await made.kill(slow)
  }
  assert.equal(await Sandbox.deleteSnapshot(built.templateId), true)
  const broken = Template().fromTemplate(template).runCmd('true').runCmd('echo on purpose; exit 3')
  await assert.rejects(Template.build(broken, 'sdk-broken', { memoryMB: 256 }), (e) => e instanceof BuildError && /on purpose/.test(e.message))
  assert.equal(await Template.exists('sdk-broken'), false)
})

test('the end', async () => {
  assert.equal(await Sandbox.kill(sandbox.sandboxId, slow), true)
  assert.equal(await Sandbox.kill(sandbox.sandboxId, slow), false)
  assert.equal(await Sandbox.deleteSnapshot(frozen), true)
  assert.equal(await Sandbox.deleteSnapshot(frozen), false)
  assert.equal(await sandbox.isRunning(), false)
  await assert.rejects(sandbox.getInfo(), SandboxNotFoundError)
  await assert.rejects(sandbox.commands.run('true'))
  await assert.rejects(Sandbox.create('there-is-no-such-template'), (e) => /404/.test(e.message) || e instanceof NotFoundError)
})
