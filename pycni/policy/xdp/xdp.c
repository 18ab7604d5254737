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
#define VXLAN_FLAGS 0x00000008 /* a VNI and nothing else */
#define HEADROOM 60            /* in all headers: the longest plain IP header behind the Ethernet one */

enum { XDP_ABORT, XDP_DROPPED, XDP_GO };
enum { TUNNEL_SET = 1 };
enum { TRACKED = 1 };                 /* of the node: its programs at pods know of every connection */
enum { SILENT = 1 };                  /* of a denial: UDP to this pod can be no answer */

/* What the agent says of the node. Ethernet addresses as the first 48 bits of a word. */
struct tunnel { struct address local; u32 vni; u16 port; u16 flags; }; /* network order; the VNI with a zero behind */
struct xdp_setup { u64 macs[MACS]; struct tunnel tunnels[TUNNELS]; u64 own[OWN_BITS / 64]; u64 flags; };
struct xdp_denial {
    struct address from, to; /* from: zeros for everybody */
    u32 state;
    u16 port;
    u8 protocol, flags;
    u64 rule;
    u32 packets, bytes;      /* not in RULES yet */
    u32 tick, flushed;       /* of the kernel's; tenths of a second */
};
struct xdp_quota { u64 second, told; };
struct udp { u16 from, to, size, sum; };
struct vxlan { u32 flags, vni; };

/* The value of an array of one row, without looking it up. */
#define ROW(name) ((void *)bpf_pseudo_fd(2, MAP_##name))
static u64 (*ticks)(void) = (void *)118;

INLINE u64 *halves(struct address *a) { return (u64 *)a; }

INLINE int is(struct address *a, struct address *b) {
    return halves(a)[0] == halves(b)[0] && halves(a)[1] == halves(b)[1];
}

INLINE u64 spread(struct address *a) {
    u64 x = halves(a)[0] * 0x9e3779b97f4a7c15ull ^ halves(a)[1];
    return (x ^ x >> 29) * 0xbf58476d1ce4e5b9ull;
}

/* The IP packet at a place, whole and with nothing between its header and the payload, which is returned. */
INLINE void *plain_ip(void *at, void *end, u16 type, struct packet *p, u32 *size) {
    if (type == IPV4) {
        struct ip4 *ip = at;
        if ((void *)(ip + 1) > end || ip->head != 0x45 || ip->offset & __builtin_bswap16(0x3fff) || ip->hops < 2)
            return 0;
        *size = __builtin_bswap16(ip->size);
        if (at + *size > end)
            return 0;
        map4(&p->from, ip->from);
        map4(&p->to, ip->to);
        p->protocol = ip->protocol;
        return ip->protocol == ICMP6 ? 0 : ip + 1;
    }
    if (type != IPV6)
        return 0;
    struct ip6 *ip = at;
    if ((void *)(ip + 1) > end || (ip->head & 0xf0) != 0x60 || ip->hops < 2)
        return 0;
    *size = sizeof(*ip) + __builtin_bswap16(ip->size);
    if (at + *size > end)
        return 0;
    p->from = ip->from;
    p->to = ip->to;
    p->protocol = ip->protocol;
    return is4(&p->from) || is4(&p->to) || ip->protocol == ICMP4 ? 0 : ip + 1;
}

/* Whether a payload can only begin a connection, or is UDP, of which the caller knows more. */
INLINE int begins(u8 *l4, void *end, struct packet *p) {
    u16 *ports = (u16 *)l4;
    if ((void *)(l4 + 8) > end)
        return 0;
    p->from_port = ports[0];
    p->to_port = ports[1];
    if (p->protocol == TCP)
        return (void *)(l4 + 20) <= end && l4[12] >> 4 >= 5 &&
               (l4[13] & (TCP_SYN | TCP_ACK | TCP_FIN | TCP_RST)) == TCP_SYN;
    if (p->protocol == UDP)
        return 1;
    if (p->protocol == SCTP)
        return (void *)(l4 + 32) <= end && l4[12] == INIT && !*(u32 *)(l4 + 4);
    if (p->protocol != ICMP4 && p->protocol != ICMP6)
        return 0;
    p->from_port = ports[2];
    p->to_port = 0;
    return ports[0] == (p->protocol == ICMP4 ? ECHO4 : ECHO6);
}

/* Where the Ethernet frame inside begins, when this is a packet for one of the node's tunnels. */
INLINE void *unwrap(struct xdp_setup *setup, struct packet *p, void *l4, void *end) {
    struct udp *udp = l4;
    struct vxlan *vxlan = (void *)(udp + 1);
    if (p->protocol != UDP || (void *)(vxlan + 1) > end)
        return 0;
#pragma unroll
    for (int i = 0; i < TUNNELS; i++) {
        struct tunnel *t = &setup->tunnels[i];
        if (!(t->flags & TUNNEL_SET))
            break;
        if (udp->to == t->port && is(&p->to, &t->local))
            return vxlan->flags == VXLAN_FLAGS && vxlan->vni == t->vni ? vxlan + 1 : 0;
    }
    return 0;
}

/* What an entry has counted goes to its rule's counters. */
INLINE void flush(struct xdp_denial *d) {
    struct count counts = {.packets = d->packets, .bytes = d->bytes};
    d->packets = d->bytes = 0;
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
    if (!s || is(&p->from, &p->to) || map_lookup(MAP(OWN), &p->from) || map_lookup(MAP(OWN), &p->to))
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
INLINE int drop(struct xdp_denial *d, struct packet *p, u32 size) {
    u32 tick = ticks();
    d->packets++;
    d->bytes += size;
    if (d->tick == tick)
        return XDP_DROPPED;
    d->tick = tick;
    u64 now = clock_ns();
    u32 tenth = now / FLUSH, zero = 0;
    if (d->flushed == tenth)
        return XDP_DROPPED;
    struct work *w = map_lookup(MAP(XDP_WORK), &zero);
    if (w && d->flushed / 10 != tenth / 10 && may_tell(now))
        tell(w, p, INGRESS, BY_POLICY, BY_XDP, d->rule);
    d->flushed = tenth;
    flush(d);
    return XDP_DROPPED;
}

/*
 * A packet that may be denied: by what is remembered, else by the maps. Where connections are tracked only TCP is
 * remembered: of others a packet like a denied one may belong to a connection that was there before.
 */
INLINE int decide(struct xdp_setup *setup, struct packet *p, u32 size, u32 state) {
    u64 to = spread(&p->to), from = spread(&p->from);
    u32 slot = to >> (64 - SLOT_BITS), own = from >> 55, zero = 0;
    struct xdp_denial *wall = map_lookup(MAP(XDP_DENIED), &slot);
    if (!wall)
        return XDP_GO;
    int tracked = setup->flags & TRACKED, lasting = p->protocol == TCP || !tracked;
    if (lasting && wall->state == state && !wall->protocol && is(&wall->to, &p->to) && !is(&p->from, &p->to) &&
        (p->protocol != UDP || wall->flags & SILENT) && !(setup->own[own >> 6 & 7] >> (own & 63) & 1))
        return drop(wall, p, size);
    slot = (to ^ from >> 7 ^ ((u64)p->to_port << 32 | p->protocol)) * 0x94d049bb133111ebull >> (64 - SLOT_BITS);
    struct xdp_denial *d = map_lookup(MAP(XDP_DENIED), &slot);
    if (!d)
        return XDP_GO;
    if (lasting && d->state == state && d->protocol == p->protocol && d->port == p->to_port && is(&d->to, &p->to) &&
        is(&d->from, &p->from))
        return drop(d, p, size);
    struct work *w = map_lookup(MAP(XDP_WORK), &zero);
    if (!w)
        return XDP_GO;
    struct packet *q = &w->packet;
    q->from = p->from;
    q->to = p->to;
    q->from_port = p->from_port;
    q->to_port = p->to_port;
    q->protocol = p->protocol;
    int everybody = 0;
    if (!is_denied(w, q, state, tracked, &everybody))
        return XDP_GO;
    u64 rule = w->judgement.rule;
    if (everybody)
        d = wall;
    flush(d);
    d->to = q->to;
    d->state = lasting ? state : 0;
    d->rule = rule;
    d->flags = 0;
    d->from = q->from;
    d->port = q->to_port;
    d->protocol = q->protocol;
    if (everybody) {
        halves(&d->from)[0] = halves(&d->from)[1] = 0;
        d->port = d->protocol = 0;
        d->flags = is_silent(&w->judgement, &q->to) ? SILENT : 0;
    }
    d->tick = d->flushed = 0;
    return drop(d, q, size);
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
    struct packet p;
    u32 size;
    void *l4 = plain_ip(eth + 1, end, eth->protocol, &p, &size);
    if (!l4)
        return XDP_GO;
    eth = unwrap(setup, &p, l4, end);
    if (eth) {
        if ((void *)(eth + 1) > end)
            return XDP_GO;
        l4 = plain_ip(eth + 1, end, eth->protocol, &p, &size);
        if (!l4)
            return XDP_GO;
    }
    if (!begins(l4, end, &p))
        return XDP_GO;
    return decide(setup, &p, size, state);
}
