package expose

import "time"

// Numbers of the NBD protocol (doc/proto.md of the NetworkBlockDevice project). Integers on the wire are big endian.
const (
	nbdMagic           = 0x4e42444d41474943 // "NBDMAGIC"
	nbdOptionMagic     = 0x49484156454f5054 // "IHAVEOPT"
	nbdOptionReply     = 0x0003e889045565a9
	nbdRequestMagic    = 0x25609513
	nbdSimpleReply     = 0x67446698
	nbdStructuredReply = 0x668e33ef
)

// Flags of the handshake; the client's have the same values.
const (
	nbdFixedNewstyle = 1 << 0
	nbdNoZeroes      = 1 << 1
)

// Options of the handshake.
const (
	nbdOptExportName      = 1
	nbdOptAbort           = 2
	nbdOptList            = 3
	nbdOptInfo            = 6
	nbdOptGo              = 7
	nbdOptStructuredReply = 8
	nbdOptListMeta        = 9
	nbdOptSetMeta         = 10
)

// Types of option replies.
const (
	nbdRepAck        = 1
	nbdRepServer     = 2
	nbdRepInfo       = 3
	nbdRepMeta       = 4
	nbdRepErrUnsup   = 1<<31 + 1
	nbdRepErrInvalid = 1<<31 + 3
	nbdRepErrUnknown = 1<<31 + 6
)

// Kinds of information about an export.
const (
	nbdInfoExport    = 0
	nbdInfoName      = 1
	nbdInfoBlockSize = 3
)

// Transmission flags: what the export can do.
const (
	nbdHasFlags        = 1 << 0
	nbdReadOnly        = 1 << 1
	nbdSendFlush       = 1 << 2
	nbdSendFUA         = 1 << 3
	nbdSendTrim        = 1 << 5
	nbdSendWriteZeroes = 1 << 6
	nbdSendDF          = 1 << 7
	nbdCanMultiConn    = 1 << 8
	nbdSendFastZero    = 1 << 11
)

// Commands.
const (
	nbdCmdRead        = 0
	nbdCmdWrite       = 1
	nbdCmdDisc        = 2
	nbdCmdFlush       = 3
	nbdCmdTrim        = 4
	nbdCmdWriteZeroes = 6
	nbdCmdBlockStatus = 7
)

// Command flags.
const (
	nbdFlagFUA      = 1 << 0
	nbdFlagNoHole   = 1 << 1
	nbdFlagDF       = 1 << 2
	nbdFlagReqOne   = 1 << 3
	nbdFlagFastZero = 1 << 4
)

// Structured replies: the flag of the last chunk, and the chunks' types.
const (
	nbdChunkDone        = 1 << 0
	nbdChunkNone        = 0
	nbdChunkData        = 1
	nbdChunkBlockStatus = 5
	nbdChunkError       = 1<<15 + 1
)

// Errors as the protocol numbers them. They are Linux's own values today, but not by promise.
const (
	nbdEPERM     = 1
	nbdEIO       = 5
	nbdENOMEM    = 12
	nbdEINVAL    = 22
	nbdENOSPC    = 28
	nbdESHUTDOWN = 108
)

// The one metadata context that is served, the number that stands for it in replies, and its states.
const (
	nbdAllocation   = "base:allocation"
	nbdAllocationID = 1
	nbdStateHole    = 1 << 0
	nbdStateZero    = 1 << 1
)

// Limits on what a client can make the server do or hold.
const (
	nbdMaxPayload   = 32 << 20 // bytes read or written by one request; what QEMU uses
	nbdMaxOption    = 64 << 10 // bytes of data of one option
	nbdMaxOptions   = 128      // options in one handshake
	nbdMaxExtents   = 4095     // extents in one block status reply
	nbdRequestCost  = 4 << 10  // bytes of the budget that a request takes besides its payload
	nbdBudget       = 2*nbdMaxPayload + 1<<20
	nbdWorkers      = 32 // requests worked on at once; QEMU keeps up to 16 under way on one connection
	nbdConnections  = 16
	nbdReadBuffer   = 64 << 10
	nbdHandshakeMax = time.Minute
	nbdDrainMax     = 10 * time.Second // for a client that hangs up to take its last replies
)

const (
	nbdRequestSize = 28
	nbdSimpleSize  = 16
	nbdChunkSize   = 20
)
