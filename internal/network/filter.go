package network

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// kernelTimeout is how long the kernel may take to answer. It does so at once; a lost answer must not hang a sandbox.
const kernelTimeout = 10 * time.Second

// answersSoon makes a socket give up waiting.
func answersSoon(c *netlink.Conn) error { return c.SetReadDeadline(time.Now().Add(kernelTimeout)) }

// chain adds a chain that packets come through, with its rules in their order.
func chain(c *nftables.Conn, t *nftables.Table, name string, hook *nftables.ChainHook, policy nftables.ChainPolicy, rules ...[]expr.Any) {
	ch := &nftables.Chain{Name: name, Table: t, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Policy: &policy}
	if hook == nftables.ChainHookPostrouting {
		ch.Type, ch.Priority = nftables.ChainTypeNAT, nftables.ChainPriorityNATSource
	}
	c.AddChain(ch)
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r})
	}
}

// refuseName is the chain that refuses what goes to it: programs get an error at once instead of waiting for an answer that never comes.
const refuseName = "refuse"

// refuseChain adds it. It comes before those that go to it.
func refuseChain(c *nftables.Conn, t *nftables.Table) {
	ch := &nftables.Chain{Name: refuseName, Table: t}
	c.AddChain(ch)
	// Messages of ICMP are few by the kernel's limit, and a busy TCP socket may miss one; a reset is never missed.
	tcp := rule(protocol(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}})
	other := []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}
	for _, r := range [][]expr.Any{tcp, other} {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: r})
	}
}

// rule joins matches and what to do where all of them match.
func rule(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

var (
	accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	drop   = []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	refuse = []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: refuseName}}
	hide   = []expr.Any{&expr.Masq{}} // behind the address of the interface that a packet leaves by
)

func compare(op expr.CmpOp, data ...byte) expr.Any { return &expr.Cmp{Op: op, Register: 1, Data: data} }

func meta(key expr.MetaKey) expr.Any { return &expr.Meta{Key: key, Register: 1} }

// The kernel compares as many bytes of a name as it is given: with the end of the string it is the name, without a prefix.
func whole(name string) []byte { return append([]byte(name), 0) }

func from(op expr.CmpOp, name []byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIFNAME), compare(op, name...)}
}

func to(op expr.CmpOp, name []byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIFNAME), compare(op, name...)}
}

func family(op expr.CmpOp, f byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyNFPROTO), compare(op, f)}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyL4PROTO), compare(expr.CmpOpEq, p)}
}

// state matches packets of connections in one of the states, which are bits.
func state(bits uint32) []expr.Any {
	mask := []byte{byte(bits), byte(bits >> 8), byte(bits >> 16), byte(bits >> 24)} // a number of the kernel's; it and we are little endian
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		compare(expr.CmpOpNeq, 0, 0, 0, 0),
	}
}

const (
	broken = expr.CtStateBitINVALID
	known  = expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED
)

// Where IPv4 packets have their addresses.
const sourceAt, destinationAt = 12, 16

func address(at uint32) []expr.Any {
	return rule(family(expr.CmpOpEq, unix.NFPROTO_IPV4), []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: 4}})
}

// address is in the prefix or, with CmpOpNeq, it is not.
func addressIn(at uint32, op expr.CmpOp, p netip.Prefix) []expr.Any {
	mask := toAddr(^uint32(uint64(1)<<(32-p.Bits()) - 1)).As4()
	network := p.Masked().Addr().As4()
	return rule(address(at), []expr.Any{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		compare(op, network[:]...),
	})
}

// destinationIn adds a set of addresses and matches packets to them; no prefixes match nothing. The id is ours, and of this set alone in its table: the
// library's own numbering is shared without a lock.
func destinationIn(c *nftables.Conn, t *nftables.Table, id uint32, name string, prefixes []netip.Prefix, then []expr.Any) ([]expr.Any, error) {
	set := &nftables.Set{Table: t, ID: id, Name: name, KeyType: nftables.TypeIPAddr, Interval: true}
	var elements []nftables.SetElement
	for _, s := range spans(prefixes) {
		first := toAddr(s.first).As4()
		elements = append(elements, nftables.SetElement{Key: first[:]})
		if s.last < 1<<32-1 { // an end is the first address beyond
			end := toAddr(s.last + 1).As4()
			elements = append(elements, nftables.SetElement{Key: end[:], IntervalEnd: true})
		}
	}
	if err := c.AddSet(set, elements); err != nil {
		return nil, fmt.Errorf("adding the set %s: %w", name, err)
	}
	return rule(address(destinationAt), []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}, then), nil
}

// installFilter writes the rules of a slot into its namespace: what its machine may reach, and that it is hidden behind the slot's address. Rules that are
// there already give way in the same step: no packet ever meets neither, or half of either.
func installFilter(ns *os.File, subnet netip.Prefix, policy Policy) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())), nftables.WithSockOptions(answersSoon))
	if err != nil {
		return fmt.Errorf("opening the packet filter: %w", err)
	}
	t := c.AddTable(&nftables.Table{Name: "spore", Family: nftables.TableFamilyINet})
	c.DelTable(t) // it is there by now, old or new
	c.AddTable(t)
	refuseChain(c, t)
	never, err := destinationIn(c, t, 1, "blocked", append(Blocked(), subnet), refuse)
	if err != nil {
		return err
	}
	allowed, err := destinationIn(c, t, 2, "allowed", policy.Allow, accept)
	if err != nil {
		return err
	}
	denied, err := destinationIn(c, t, 3, "denied", policy.Deny, refuse)
	if err != nil {
		return err
	}
	rest := accept
	if policy.restrictive() {
		rest = refuse
	}
	machine := whole(TapName)
	chain(c, t, "forward", nftables.ChainHookForward, nftables.ChainPolicyDrop,
		rule(family(expr.CmpOpNeq, unix.NFPROTO_IPV4), drop),
		rule(from(expr.CmpOpEq, machine), addressIn(sourceAt, expr.CmpOpNeq, netip.PrefixFrom(guestAddr, 32)), drop),
		rule(state(broken), drop), // it would leave with the machine's own address
		rule(from(expr.CmpOpNeq, machine), state(known), accept),
		rule(from(expr.CmpOpNeq, machine), drop),
		// Connections that are there are no exception: a policy may have come after them.
		never, allowed, denied, rest,
	)
	chain(c, t, "input", nftables.ChainHookInput, nftables.ChainPolicyDrop,
		rule(family(expr.CmpOpNeq, unix.NFPROTO_IPV4), drop),
		rule(state(known), accept),
		rule(from(expr.CmpOpEq, machine), refuse),
	)
	chain(c, t, "hide", nftables.ChainHookPostrouting, nftables.ChainPolicyAccept, rule(to(expr.CmpOpEq, whole(uplinkName)), hide))
	if err := c.Flush(); err != nil {
		return fmt.Errorf("installing the sandbox's packet filter: %w", explainFilter(err))
	}
	return nil
}
