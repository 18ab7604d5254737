/*
 * Packets that begin connections and that the ingress policies of the pod they are for certainly deny: dropped where the
 * uplink receives them, plain or inside VXLAN. Follows packet.h, flows.h and judge.h.
 *
 * Everything else passes, so that nothing is dropped that the stack and the nftables plane would let through: packets in
 * fragments, with IP options, extension headers or VLAN tags, cut off, about to expire; to anybody who is no pod of this
 * node; from the node's own addresses; everything while the maps change.
 *
 * What was denied is remembered (XDP_DENIED, a table for each processor), so that a flood costs a look or two into an array
 * per packet. An entry is about one source, protocol and port or, where no rule could allow anything, about a pod. It is
 * good for one state of the maps, and what it counts goes to RULES by and by.
 */
#define SLOT_BITS 9
#define MACS 4
#define TUNNELS 4
#define OWN_BITS 512
#define TELL_MOST 20           /* drops told in a second, by each processor */
#define SECOND 1000000000ull
#define FLUSH (SECOND / 10)    /* how long what an entry counts may wait for the next drop */
#define MAC_BITS 0xffffffffffffull
#define ANY (1 << 17)
#define MAPPED 0xffff0000ull   /* the second half of an IPv4 address before the address itself */
#define INSIDE 30              /* from the UDP header to the IP header inside VXLAN */
#define VXLAN_FLAGS 0x00000008 /* a VNI and nothing else */

#define IPV6_BIT (1ull << 56)
#define PLAIN4 0xff3f0000000000ffull /* of an IPv4 header's first eight bytes: version, size, fragment */

enum { XDP_ABORT, XDP_DROPPED, XDP_GO };
enum { TUNNEL_SET = 1, TUNNEL_IPV4 = 2 };
enum { TRACKED = 1 };                 /* of the node: its programs at pods know of every connection */
enum { SILENT = 1 };                  /* of a denial: UDP to this pod can be no answer */

/* What the agent says of the node. Ethernet addresses as the first 48 bits of a word. */
struct tunnel { struct address local; u32 vni; u16 port; u16 flags; }; /* network order; the VNI with a zero behind */
struct xdp_setup { u64 macs[MACS]; struct tunnel tunnels[TUNNELS]; u64 own[OWN_BITS / 64]; u64 flags; };
struct xdp_denial {
    struct address from, to; /* from: zeros for everybody */
    u64 what;                /* state of the maps, port << 32, protocol << 48, IPV6_BIT; port and protocol 0: all */
    u64 rule;
    u64 counted;             /* not in RULES yet: packets, bytes << 32 */
    u16 tick, flags;         /* tick of the last time the clock was looked at */
    u32 flushed;             /* tenths of a second */
};
struct xdp_quota { u64 second, told; };
/* Of a packet. Nothing takes its address, so that it can be in registers. */
struct ends { u64 from[2], to[2]; u32 size; u16 from_port, port; u8 protocol; };
struct udp { u16 from, to, size, sum; };
struct vxlan { u32 flags, vni; };

/* The value of an array of one row, without looking it up. */
#define ROW(name) ((void *)bpf_pseudo_fd(2, MAP_##name))
static u64 (*ticks)(void) = (void *)118;

INLINE u64 *halves(struct address *a) { return (u64 *)a; }

INLINE int is(struct address *a, u64 first, u64 second) { return halves(a)[0] == first && halves(a)[1] == second; }

/* The top bits are spread well, for addresses of both families. */
INLINE u64 spread(u64 first, u64 second) { return (first + second) * 0x9e3779b97f4a7c15ull; }

/* The slot of one source, protocol and port. */
INLINE u32 slot_of(u64 to, u64 from, u64 what) {
    return (to + (from >> 3) + (what >> 32) * 0x94d049bb133111ebull) >> (64 - SLOT_BITS);
}

/* Whether an address, by its spread, may be the node's. */
INLINE int may_be_own(struct xdp_setup *setup, u64 spread) {
    return setup->own[spread >> 61] >> (spread >> 55 & 63) & 1;
}

INLINE int is_ipv4(struct ends *e) { return !e->from[0] && (e->from[1] & 0xffffffff) == MAPPED; }

/* The IP packet at a place, whole and with nothing between its header and the payload, which is returned. */
INLINE void *plain_ip(void *at, void *end, u16 type, struct ends *e) {
    if (type == IPV4) {
        struct ip4 *ip = at;
        if ((void *)(ip + 1) > end || ip->head != 0x45 || ip->offset & __builtin_bswap16(0x3fff) || ip->hops < 2)
            return 0;
        e->size = __builtin_bswap16(ip->size);
        if (e->size < sizeof(*ip) || at + e->size > end)
            return 0;
        e->from[0] = e->to[0] = 0;
        e->from[1] = MAPPED | (u64)ip->from << 32;
        e->to[1] = MAPPED | (u64)ip->to << 32;
        e->protocol = ip->protocol;
        return ip->protocol == ICMP6 ? 0 : ip + 1;
    }
    if (type != IPV6)
        return 0;
    struct ip6 *ip = at;
    if ((void *)(ip + 1) > end || (ip->head & 0xf0) != 0x60 || ip->hops < 2)
        return 0;
    e->size = sizeof(*ip) + __builtin_bswap16(ip->size);
    if (at + e->size > end)
        return 0;
    e->from[0] = halves(&ip->from)[0];
    e->from[1] = halves(&ip->from)[1];
    e->to[0] = halves(&ip->to)[0];
    e->to[1] = halves(&ip->to)[1];
    e->protocol = ip->protocol;
    return is4(&ip->from) || is4(&ip->to) || ip->protocol == ICMP4 ? 0 : ip + 1;
}

/* Whether a payload can only begin a connection, or is UDP, of which the caller knows more. */
INLINE int begins(u8 *l4, void *end, struct ends *e) {
    u16 *ports = (u16 *)l4;
    u32 size = e->size - (is_ipv4(e) ? sizeof(struct ip4) : sizeof(struct ip6));
    if ((void *)(l4 + 8) > end || size < 8)
        return 0;
    e->from_port = ports[0];
    e->port = ports[1];
    if (e->protocol == TCP)
        return (void *)(l4 + 20) <= end && size >= 20 && l4[12] >> 4 >= 5 &&
               (l4[13] & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
    if (e->protocol == UDP)
        return 1;
    if (e->protocol == SCTP)
        return (void *)(l4 + 32) <= end && size >= 32 && l4[12] == INIT && !*(u32 *)(l4 + 4);
    if (e->protocol != ICMP4 && e->protocol != ICMP6)
        return 0;
    e->from_port = ports[2];
    e->port = 0;
    return ports[0] == (e->protocol == ICMP4 ? ECHO4 : ECHO6);
}

/*
 * Where the Ethernet frame inside begins, when this is a whole packet for one of the node's tunnels. to: the first and
 * second half of where it goes; size: of the payload, which becomes the most that an IP packet inside may have.
 */
INLINE struct ethernet *unwrap(struct xdp_setup *setup, u64 first, u64 second, struct udp *udp, void *end, u32 *size) {
    struct vxlan *vxlan = (void *)(udp + 1);
    struct ethernet *inner = (void *)(vxlan + 1);
    if ((void *)(inner + 1) > end || udp->size != __builtin_bswap16(*size) || *size < INSIDE)
        return 0;
#pragma unroll
    for (int i = 0; i < TUNNELS; i++) {
        struct tunnel *t = &setup->tunnels[i];
        if (!(t->flags & TUNNEL_SET))
            break;
        if (udp->to == t->port && is(&t->local, first, second)) {
            *size -= INSIDE;
            return vxlan->flags == VXLAN_FLAGS && vxlan->vni == t->vni ? inner : 0;
        }
    }
    return 0;
}

/* The same for judging. */
INLINE void spell(struct packet *p, struct ends *e) {
    halves(&p->from)[0] = e->from[0];
    halves(&p->from)[1] = e->from[1];
    halves(&p->to)[0] = e->to[0];
    halves(&p->to)[1] = e->to[1];
    p->from_port = e->from_port;
    p->to_port = e->port;
    p->protocol = e->protocol;
}

/* What an entry has counted goes to its rule's counters. */
INLINE void flush(struct xdp_denial *d) {
    struct count counts = {.packets = (u32)d->counted, .bytes = d->counted >> 32};
    d->counted = 0;
    if (!counts.packets)
        return;
    u64 rule = d->rule;
    struct count *found = map_lookup(MAP(RULES), &rule);
    if (found) {
        found->packets += counts.packets;
        found->bytes += counts.bytes;
    }
    found = map_lookup(MAP(DENIALS), &rule);
    if (found) {
        __sync_fetch_and_add(&found->packets, counts.packets);
        __sync_fetch_and_add(&found->bytes, counts.bytes);
    } else {
        map_update(MAP(DENIALS), &rule, &counts, 1);
    }
}

INLINE int may_tell(u64 now) {
    u32 zero = 0;
    struct xdp_quota *q = map_lookup(MAP(XDP_QUOTA), &zero);
    if (!q)
        return 0;
    if (now - q->second >= SECOND) {
        q->second = now;
        q->told = 0;
    }
    return q->told++ < TELL_MOST;
}

/* Whether a direction's policies deny everything, whoever is at the other end. */
INLINE int allows_nothing(struct subject *s) {
    return !s->flags && s->isolated && !s->tiers[ADMIN].pairs && !s->tiers[ADMIN].blocks &&
           !s->tiers[POLICIES].pairs && !s->tiers[POLICIES].blocks;
}

/* Whether a pod may open no connection, so that what it gets answers none. */
INLINE int is_silent(struct judgement *j, struct address *pod) {
    j->key.address = *pod;
    j->key.direction = EGRESS;
    struct subject *s = map_lookup(MAP(SUBJECTS), &j->key);
    return s && allows_nothing(s);
}

/* Whether a packet may belong to a connection that is known. w->key becomes that of it. */
INLINE int is_known(struct work *w, struct packet *p, int tracked) {
    u32 zero = 0;
    struct pod *pod = map_lookup(MAP(PODS), &p->to);
    struct times *t = map_lookup(MAP(TIMES), &zero);
    u64 *grace = map_lookup(MAP(GRACE), &zero);
    if (!tracked || !t || !grace || !pod)
        return p->protocol == UDP && !is_silent(&w->judgement, &p->to);
    key_of(&w->key, p);
    u64 now = clock_ns();
    return map_lookup(MAP(FLOWS), &w->key) || stacks(&w->key, t, now) ||
           (p->protocol == UDP && (now < *grace || now < pod->since));
}

/* Whether a packet is certainly denied, and by which rule. everybody: no packet of any protocol is allowed to here. */
INLINE int is_denied(struct work *w, struct packet *p, u32 state, int tracked, int *everybody) {
    struct judgement *j = &w->judgement;
    j->key.address = p->to;
    j->key.direction = INGRESS;
    struct subject *s = map_lookup(MAP(SUBJECTS), &j->key);
    if (!s || same_address(&p->from, &p->to) || map_lookup(MAP(OWN), &p->from) || map_lookup(MAP(OWN), &p->to))
        return 0;
    u64 pod = s->pod;
    *everybody = !pod && allows_nothing(s);
    if (pod) {
        /* Both directions: which of them has rows depends on the policies. */
        j->key.address = p->from;
        struct subject *one = map_lookup(MAP(SUBJECTS), &j->key);
        j->key.direction = EGRESS;
        struct subject *other = map_lookup(MAP(SUBJECTS), &j->key);
        if ((one && one->pod == pod) || (other && other->pod == pod))
            return 0;
    }
    if (p->protocol != TCP && is_known(w, p, tracked))
        return 0;
    return judge_end(j, p, &p->to, &p->from, INGRESS) == DENIED && judging() == state;
}

/* A drop is counted, told of once a second, and in time goes to the counters of its rule. */
INLINE int drop(struct xdp_denial *d, struct ends *e) {
    u32 zero = 0;
    u16 tick = ticks();
    d->counted += 1 | (u64)e->size << 32;
    if (d->tick == tick)
        return XDP_DROPPED;
    d->tick = tick;
    u64 now = clock_ns();
    u32 tenth = now / FLUSH;
    if (d->flushed == tenth)
        return XDP_DROPPED;
    struct work *w = map_lookup(MAP(XDP_WORK), &zero);
    if (w && d->flushed / 10 != tenth / 10 && may_tell(now)) {
        spell(&w->packet, e);
        tell(w, &w->packet, INGRESS, BY_POLICY, BY_XDP, d->rule);
    }
    d->flushed = tenth;
    flush(d);
    return XDP_DROPPED;
}

/*
 * A packet that may be denied: by what is remembered, else by the maps. Where connections are tracked only TCP is
 * remembered: of others a packet like a denied one may belong to a connection that was there before.
 */
INLINE int decide(struct xdp_setup *setup, struct ends *e, u32 state) {
    u64 to = spread(e->to[0], e->to[1]), from = spread(e->from[0], e->from[1]);
    u32 slot = to >> (64 - SLOT_BITS), zero = 0;
    struct xdp_denial *wall = map_lookup(MAP(XDP_DENIED), &slot);
    if (!wall)
        return XDP_GO;
    u64 pod = state | (is_ipv4(e) ? 0 : IPV6_BIT), exact = pod | (u64)e->port << 32 | (u64)e->protocol << 48;
    int tracked = setup->flags & TRACKED, lasting = e->protocol == TCP || !tracked;
    if (lasting && wall->what == pod && is(&wall->to, e->to[0], e->to[1]) &&
        (e->from[0] != e->to[0] || e->from[1] != e->to[1]) && (e->protocol != UDP || wall->flags & SILENT) &&
        !may_be_own(setup, from))
        return drop(wall, e);
    slot = slot_of(to, from, exact);
    struct xdp_denial *d = map_lookup(MAP(XDP_DENIED), &slot);
    if (!d)
        return XDP_GO;
    if (lasting && d->what == exact && is(&d->to, e->to[0], e->to[1]) && is(&d->from, e->from[0], e->from[1]))
        return drop(d, e);
    struct work *w = map_lookup(MAP(XDP_WORK), &zero);
    if (!w)
        return XDP_GO;
    spell(&w->packet, e);
    int everybody = 0;
    if (!is_denied(w, &w->packet, state, tracked, &everybody))
        return XDP_GO;
    u64 rule = w->judgement.rule;
    if (everybody)
        d = wall;
    flush(d);
    halves(&d->from)[0] = everybody ? 0 : e->from[0];
    halves(&d->from)[1] = everybody ? 0 : e->from[1];
    halves(&d->to)[0] = e->to[0];
    halves(&d->to)[1] = e->to[1];
    d->what = !lasting ? 0 : everybody ? pod : exact;
    d->flags = everybody && is_silent(&w->judgement, &w->packet.to) ? SILENT : 0;
    d->rule = rule;
    d->tick = ticks() - 1;
    d->flushed = 0;
    return drop(d, e);
}

/* A beginning of TCP by what is remembered. 0: nothing is. family: 0 or IPV6_BIT. */
INLINE int is_remembered(struct xdp_setup *setup, struct ends *e, u64 family, u32 state) {
    u64 to = spread(e->to[0], e->to[1]), from = spread(e->from[0], e->from[1]), pod = state | family;
    u32 slot = to >> (64 - SLOT_BITS);
    struct xdp_denial *d = map_lookup(MAP(XDP_DENIED), &slot);
    if (!d)
        return 0;
    if (d->what != pod || !is(&d->to, e->to[0], e->to[1]) || (e->from[0] == e->to[0] && e->from[1] == e->to[1]) ||
        may_be_own(setup, from)) {
        u64 exact = pod | (u64)e->port << 32 | (u64)TCP << 48;
        slot = slot_of(to, from, exact);
        d = map_lookup(MAP(XDP_DENIED), &slot);
        if (!d || d->what != exact || !is(&d->to, e->to[0], e->to[1]) || !is(&d->from, e->from[0], e->from[1]))
            return 0;
    }
    return drop(d, e);
}

INLINE int is_syn(u8 *tcp) {
    return tcp[12] >= 0x50 && (tcp[13] & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
}

/* The short way for floods of TCP, by what is remembered. 0: nothing is, or the packet is another. room: bytes. */
INLINE int is_flood(struct xdp_setup *setup, struct ethernet *eth, void *end, u32 room, u32 state) {
    u8 *ip = (u8 *)(eth + 1);
    struct ends e;
    e.protocol = TCP;
    if ((void *)(ip + 40) > end)
        return 0;
    if (eth->protocol == IPV4) {
        u64 first = *(u64 *)ip, second = *(u64 *)(ip + 8);
        e.size = __builtin_bswap16(first >> 16);
        if ((second & 0xff00) != TCP << 8 || (first & PLAIN4) != 0x45 || (second & 0xff) < 2 || e.size < 40 ||
            e.size > room || ip + e.size > (u8 *)end || !is_syn(ip + 20))
            return 0;
        e.from_port = *(u16 *)(ip + 20);
        e.port = *(u16 *)(ip + 22);
        e.from[0] = e.to[0] = 0;
        e.from[1] = MAPPED | (second & 0xffffffff00000000ull);
        e.to[1] = MAPPED | (u64)*(u32 *)(ip + 16) << 32;
        return is_remembered(setup, &e, 0, state);
    }
    if (eth->protocol != IPV6 || (void *)(ip + 60) > end)
        return 0;
    u64 first = *(u64 *)ip;
    e.size = 40 + __builtin_bswap16(first >> 32);
    if ((first >> 48 & 0xff) != TCP || (first & 0xf0) != 0x60 || first >> 56 < 2 || e.size < 60 || e.size > room ||
        ip + e.size > (u8 *)end || !is_syn(ip + 40))
        return 0;
    e.from_port = *(u16 *)(ip + 40);
    e.port = *(u16 *)(ip + 42);
    e.from[0] = *(u64 *)(ip + 8);
    e.from[1] = *(u64 *)(ip + 16);
    e.to[0] = *(u64 *)(ip + 24);
    e.to[1] = *(u64 *)(ip + 32);
    return is_remembered(setup, &e, IPV6_BIT, state);
}

/* The short way into VXLAN over IPv4; as ``unwrap``, 0 for everything else. */
INLINE struct ethernet *inside4(struct xdp_setup *setup, struct ethernet *eth, void *end, u32 *room) {
    u8 *ip = (u8 *)(eth + 1);
    struct udp *udp = (void *)(ip + 20);
    struct vxlan *vxlan = (void *)(udp + 1);
    struct ethernet *inner = (void *)(vxlan + 1);
    if (eth->protocol != IPV4 || (void *)(inner + 1) > end || ip[9] != UDP)
        return 0;
    u64 first = *(u64 *)ip;
    u32 size = __builtin_bswap16(first >> 16), to = *(u32 *)(ip + 16);
    if ((first & PLAIN4) != 0x45 || size < 20 + INSIDE || ip + size > (u8 *)end ||
        udp->size != __builtin_bswap16(size - 20) || vxlan->flags != VXLAN_FLAGS)
        return 0;
#pragma unroll
    for (int i = 0; i < TUNNELS; i++) {
        struct tunnel *t = &setup->tunnels[i];
        if (t->flags == (TUNNEL_SET | TUNNEL_IPV4) && t->local.w[3] == to && t->port == udp->to && t->vni == vxlan->vni) {
            *room = size - 20 - INSIDE;
            return inner;
        }
    }
    return 0;
}

int pycni_xdp(struct xdp_md *ctx) {
    void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
    struct ethernet *eth = data;
    if ((void *)(eth + 1) > end)
        return XDP_GO;
    struct xdp_setup *setup = ROW(XDP_SETUP);
    u32 state = *(volatile u32 *)&((struct config *)ROW(CONFIG))->judging;
    if (!state)
        return XDP_GO;
    u64 mac = *(u64 *)data & MAC_BITS;
    if (mac != setup->macs[0] && mac != setup->macs[1] && mac != setup->macs[2] && mac != setup->macs[3])
        return XDP_GO;
    u32 room = ANY;
    struct ethernet *inner = inside4(setup, eth, end, &room);
    if (inner)
        eth = inner;
    int found = is_flood(setup, eth, end, room, state);
    if (found)
        return found;
    struct ends e;
    void *l4 = plain_ip(eth + 1, end, eth->protocol, &e);
    if (!l4 || e.size > room)
        return XDP_GO;
    if (!inner && e.protocol == UDP) {
        room = e.size - (l4 - (void *)(eth + 1));
        inner = unwrap(setup, e.to[0], e.to[1], l4, end, &room);
        if (inner) {
            l4 = plain_ip(inner + 1, end, inner->protocol, &e);
            if (!l4 || e.size > room)
                return XDP_GO;
        }
    }
    if (!begins(l4, end, &e))
        return XDP_GO;
    return decide(setup, &e, state);
}
