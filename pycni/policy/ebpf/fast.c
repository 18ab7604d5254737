/*
 * The fast path on a node's devices. pod_in: what a pod sends (the host's end of its veth receives it); pod_out: what
 * it is given; uplink_in and uplink_out: what comes from and goes to other nodes. Follows the other headers.
 *
 * Only connections whose first packet was judged here have an entry in FLOWS; whatever else there is goes on to the
 * stack as it is. Nothing that is not certain is allowed or denied.
 */
enum { NEXT = -1, DROP = 2 };

static long (*change_type)(struct __sk_buff *skb, u32 type) = (void *)32;
static long (*pull)(struct __sk_buff *skb, u32 size) = (void *)39;
static long (*redirect_peer)(u32 ifindex, u64 flags) = (void *)155;

#define HEADERS 128 /* what is made linear where it is not: Ethernet, IP, extensions, transport */

/* The packet in a frame. 0: there is none. */
INLINE int parse(struct __sk_buff *skb, struct packet *p, int v6) {
    /* What is sent from pages may have less than the headers in one piece. */
    u32 least = v6 ? ETHERNET + 60 : ETHERNET + 40;
    if ((void *)(long)skb->data + least > (void *)(long)skb->data_end && skb->data_end - skb->data < skb->len)
        pull(skb, skb->len < HEADERS ? skb->len : HEADERS);
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    return v6 ? parse6(p, data, ETHERNET, end) : parse4(p, data, ETHERNET, end);
}

/* The packet an ICMP error quotes. */
INLINE int parse_quoted(struct __sk_buff *skb, struct packet *p, int v6, u32 at) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    if (at > 512)
        return 0;
    return v6 ? parse6(p, data, at + 8, end) : parse4(p, data, at + 8, end);
}

/* Size of the biggest IP packet this is, or becomes when it is cut into segments. */
INLINE u32 biggest(struct __sk_buff *skb, struct packet *p) {
    return skb->gso_segs > 1 ? skb->gso_size + p->headers : skb->len - ETHERNET;
}

/* Whether an entry still counts. */
INLINE int lives(struct flow *f, struct times *t, u8 protocol, u64 now) {
    return now <= f->used || now - f->used <= lasts(t, protocol, f->seen[0], f->seen[1]);
}

INLINE void renew(struct flow *f, u32 side, struct packet *p, u64 now) {
    note_state(&f->seen[side & 1], p->seen);
    if (now - f->used > 1000000000ull || now < f->used)
        f->used = now;
}

/*
 * On with a packet of a connection that is allowed: straight to the other pod where nothing else is to be done. A frame
 * for another MAC than the pod's may reach another pod, which got the address of one that is gone: the entry ends.
 */
INLINE int carry(struct __sk_buff *skb, struct packet *p, struct flow_key *key, struct flow *f, u32 side) {
    if (f->ifindex[0] && f->ifindex[1]) {
        struct ethernet *frame = (void *)(long)skb->data;
        if ((void *)(frame + 1) > (void *)(long)skb->data_end ||
            !same_mac(frame->to, side ? f->low_mac : f->high_mac)) {
            map_delete(MAP(FLOWS), key);
            return NEXT;
        }
        if (f->flags & SHORT && p->part == WHOLE && !p->options && biggest(skb, p) <= f->mtu) {
            u32 target = side ? f->ifindex[0] : f->ifindex[1];
            if (skb->pkt_type)
                change_type(skb, 0);
            return redirect_peer(target, 0);
        }
    }
    skb->mark |= JUDGED;
    return NEXT;
}

INLINE int refuse(struct __sk_buff *skb, struct work *w, struct packet *p, u8 reason) {
    u32 key = reason;
    struct count *found = map_lookup(MAP(REFUSED), &key);
    if (found)
        add(found, skb->len);
    tell(w, p, EGRESS, reason, BY_TC, 0);
    return DROP;
}

/* The pod that has this address, if it is the one behind the device a packet came by. */
INLINE int is_own(struct __sk_buff *skb, struct address *a) {
    struct pod *pod = map_lookup(MAP(PODS), a);
    return pod && pod->ifindex == skb->ifindex;
}

INLINE int link_local(struct address *a) { return (a->w[0] & 0x0000c0ff) == 0x000080fe; }
INLINE int unspecified(struct address *a) { return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]); }
INLINE int multicast6(struct address *a) { return (a->w[0] & 0xff) == 0xff; }

/* ARP: a pod speaks for itself only. */
INLINE int arp(struct __sk_buff *skb, struct work *w, struct device *device) {
    struct { u16 hardware, protocol; u8 sizes[2]; u16 operation; u8 mac[6]; u8 ip[4]; u8 other[10]; } *a;
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    a = data + ETHERNET;
    struct packet *p = &w->packet;
    __builtin_memset(p, 0, sizeof(*p));
    if ((void *)(a + 1) > end)
        return refuse(skb, w, p, SPOOFED_NEIGHBOUR);
    u32 ip, asked;
    __builtin_memcpy(&ip, a->ip, 4);
    __builtin_memcpy(&asked, a->other + 6, 4);
    map4(&p->from, ip);
    map4(&p->to, asked);
    if (!same_mac(a->mac, device->mac) || (ip && !is_own(skb, &p->from)))
        return refuse(skb, w, p, SPOOFED_NEIGHBOUR);
    return NEXT;
}

/* Neighbour discovery: of the own addresses and the own MAC only; a pod is no router. */
INLINE int neighbours(struct __sk_buff *skb, struct packet *p, struct device *device) {
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    u32 at = p->l4;
    if (at > 512)
        return 0;
    struct { u8 kind, code; u16 sum; u32 flags; struct address target; u8 option, size, mac[6]; } *n = data + at;
    KEEP(n);
    if (p->kind == 134 || p->kind == 137)
        return 0;
    if (p->kind == 133)
        return 1;
    if ((void *)&n->option > end)
        return 0;
    if (p->kind == 136) {
        struct address target = n->target;
        if (!link_local(&target) && !is_own(skb, &target))
            return 0;
    }
    if ((void *)(n + 1) > end)
        return 1;
    return n->option != (p->kind == 135 ? 1 : 2) || same_mac(n->mac, device->mac);
}

/* Whether a pod may send this. 0: yes; else the reason it may not. */
INLINE int spoofed(struct __sk_buff *skb, struct packet *p, struct device *device, int v6) {
    if (!v6) {
        if (is_own(skb, &p->from))
            return 0;
        /* DHCP before there is an address. */
        int dhcp = !p->from.w[3] && p->protocol == UDP && p->from_port == __builtin_bswap16(68) &&
                   p->to_port == __builtin_bswap16(67);
        return dhcp ? 0 : SPOOFED_ADDRESS;
    }
    if (p->unread)
        return SPOOFED_NEIGHBOUR; /* may be neighbour discovery */
    if (p->protocol == ICMP6 && p->part != LATER_PART && p->kind >= 133 && p->kind <= 137 &&
        !neighbours(skb, p, device))
        return SPOOFED_NEIGHBOUR;
    if (is_own(skb, &p->from))
        return 0;
    if (link_local(&p->from)) {
        /* Neighbour discovery, multicast listeners, echoes, DHCPv6; anything else would meet no policy. */
        if (p->protocol == ICMP6 || multicast6(&p->to) ||
            (p->protocol == UDP && p->from_port == __builtin_bswap16(546) && p->to_port == __builtin_bswap16(547)))
            return 0;
        return SPOOFED_ADDRESS;
    }
    if (unspecified(&p->from) && p->protocol == ICMP6 &&
        (p->kind == 133 || p->kind == 135 || (p->kind >= 130 && p->kind <= 132) || p->kind == 143))
        return 0;
    return SPOOFED_ADDRESS;
}

/* An ICMP error about a connection that was judged here belongs to it. ifindex: of the pod it comes from, or goes to. */
INLINE int error(struct __sk_buff *skb, struct work *w, struct packet *p, int v6, u32 ifindex, int sent) {
    struct packet *q = &w->quoted;
    struct flow_key *key = &w->key;
    __builtin_memset(q, 0, sizeof(*q));
    if (p->part != WHOLE || !parse_quoted(skb, q, v6, p->l4) || !q->known || q->part == LATER_PART)
        return NEXT;
    /* What is quoted was sent by whom the error is for; a pod tells only of what was sent to itself. */
    if (!same_address(&q->from, &p->to) || (sent && !same_address(&q->to, &p->from)))
        return NEXT;
    u32 side = key_of(key, q);
    u32 zero = 0;
    struct flow *f = map_lookup(MAP(FLOWS), key);
    struct times *t = map_lookup(MAP(TIMES), &zero);
    if (!f || !t || !lives(f, t, key->protocol, clock_ns()))
        return NEXT;
    if ((sent ? side : !side) ? f->ifindex[0] != ifindex : f->ifindex[1] != ifindex)
        return NEXT;
    skb->mark |= JUDGED;
    return NEXT;
}

/*
 * A packet without an entry, or one that begins a connection anew. near: the pod of this node that sends it, or 0;
 * far: the one that gets it, or 0. The entry counts from here on, when it is allowed.
 */
INLINE int begin(struct __sk_buff *skb, struct work *w, struct packet *p, struct flow_key *key, u32 side,
                 struct pod *near, struct pod *far, struct flow *old, struct times *t, u64 now) {
    if (p->part != WHOLE || p->options)
        return NEXT;
    if (near && far) {
        /* By way of the node, which may have rules of its own. */
        struct ethernet *frame = (void *)(long)skb->data;
        if ((void *)(frame + 1) > (void *)(long)skb->data_end || !same_mac(frame->to, far->mac))
            return NEXT;
    }
    if (!judging()) {
        /* A try again of what was judged goes on; everything else is the stack's from now on. */
        if (old && old->seen[0] + old->seen[1] == BEGAN && old->seen[side & 1] == BEGAN)
            return carry(skb, p, key, old, side);
        if (old)
            map_delete(MAP(FLOWS), key);
        return NEXT;
    }
    if (stacks(key, t, now))
        return NEXT;
    if (p->protocol == UDP) {
        u32 zero = 0;
        u64 *grace = map_lookup(MAP(GRACE), &zero);
        if (!grace || now < *grace || (near && now < near->since) || (far && now < far->since))
            return NEXT;
    }
    int verdict = judge(w, p, near != 0, far != 0, skb->len, BY_TC);
    if (verdict == DENIED)
        return DROP;
    if (verdict == STACK) {
        if (old)
            map_delete(MAP(FLOWS), key);
        return NEXT;
    }
    struct flow *f = &w->flow;
    __builtin_memset(f, 0, sizeof(*f));
    f->used = now;
    f->mtu = 0xffff;
    struct pod *low = side ? far : near, *high = side ? near : far;
    if (low) {
        f->ifindex[0] = low->ifindex;
        __builtin_memcpy(f->low_mac, low->mac, 6);
        f->mtu = low->mtu;
    }
    if (high) {
        f->ifindex[1] = high->ifindex;
        __builtin_memcpy(f->high_mac, high->mac, 6);
        if (high->mtu < f->mtu)
            f->mtu = high->mtu;
    }
    if (near && far && near->segment && near->segment == far->segment)
        f->flags = SHORT;
    f->seen[side & 1] = p->seen;
    if (map_update(MAP(FLOWS), key, f, 0))
        return NEXT; /* full */
    return carry(skb, p, key, f, side);
}

INLINE struct work *work(void) {
    u32 zero = 0;
    return map_lookup(MAP(WORK), &zero);
}

/* What a pod sends apart from connections that are known: its own MAC is on it, and no VLAN's tag. */
INLINE int frame_of_pod(struct __sk_buff *skb, struct work *w, struct device *device) {
    struct ethernet *frame = (void *)(long)skb->data;
    if ((void *)(frame + 1) > (void *)(long)skb->data_end || !same_mac(frame->from, device->mac))
        return refuse(skb, w, &w->packet, SPOOFED_MAC);
    return skb->vlan_present ? refuse(skb, w, &w->packet, TAGGED) : 0;
}

/* Frames that are no IP packets. */
INLINE int other_frame(struct __sk_buff *skb) {
    u32 ifindex = skb->ifindex, zero = 0;
    if (skb->protocol == ARP && (void *)(long)skb->data + ETHERNET + 28 > (void *)(long)skb->data_end)
        pull(skb, ETHERNET + 28);
    struct device *device = map_lookup(MAP(DEVICES), &ifindex);
    struct config *c = map_lookup(MAP(CONFIG), &zero);
    struct work *w = work();
    if (!device || !c || !w || !(c->flags & SPOOF_CHECK))
        return NEXT;
    __builtin_memset(&w->packet, 0, sizeof(w->packet));
    int verdict = frame_of_pod(skb, w, device);
    if (verdict)
        return verdict;
    return skb->protocol == ARP ? arp(skb, w, device) : NEXT;
}

/* An IP packet that no entry is about, in w->packet: addresses first, then policies. */
INLINE int other_packet(struct __sk_buff *skb, struct work *w, int readable) {
    u32 ifindex = skb->ifindex, zero = 0;
    int v6 = skb->protocol == IPV6;
    struct packet *p = &w->packet;
    struct device *device = map_lookup(MAP(DEVICES), &ifindex);
    struct times *t = map_lookup(MAP(TIMES), &zero);
    struct config *c = map_lookup(MAP(CONFIG), &zero);
    if (!device || !t || !c)
        return NEXT;
    if (c->flags & SPOOF_CHECK) {
        int verdict = frame_of_pod(skb, w, device);
        if (verdict)
            return verdict;
        int reason = readable ? spoofed(skb, p, device, v6) : SPOOFED_ADDRESS;
        if (reason)
            return refuse(skb, w, p, reason);
    }
    if (!readable || skb->vlan_present)
        return NEXT;
    if (p->error)
        return error(skb, w, p, v6, ifindex, 1);
    if (!p->known || !(p->begins || p->protocol == UDP))
        return NEXT;
    struct pod *near = map_lookup(MAP(PODS), &p->from);
    struct pod *far = map_lookup(MAP(PODS), &p->to);
    if (!near || near->ifindex != ifindex || (!far && !map_lookup(MAP(PEERS), &p->to)))
        return NEXT;
    u32 side = key_of(&w->key, p);
    struct flow *old = map_lookup(MAP(FLOWS), &w->key);
    if (old && (side ? old->ifindex[1] : old->ifindex[0]) != ifindex)
        old = 0; /* of another pod, which had this address */
    return begin(skb, w, p, &w->key, side, near, far, old, t, clock_ns());
}

int pod_in(struct __sk_buff *skb) {
    u32 zero = 0;
    if (skb->protocol != IPV4 && skb->protocol != IPV6)
        return other_frame(skb);
    /* Not on the stack, where the verifier would follow every value. */
    struct work *w = work();
    if (!w)
        return NEXT;
    struct packet *p = &w->packet;
    __builtin_memset(p, 0, sizeof(*p));
    int readable = parse(skb, p, skb->protocol == IPV6);
    if (readable && p->known && p->part != LATER_PART && !skb->vlan_present) {
        u32 side = key_of(&w->key, p);
        struct flow *f = map_lookup(MAP(FLOWS), &w->key);
        struct times *t = map_lookup(MAP(TIMES), &zero);
        if (f && t && (side ? f->ifindex[1] : f->ifindex[0]) == skb->ifindex) {
            u64 now = clock_ns();
            struct ethernet *frame = (void *)(long)skb->data;
            int again = p->begins && (p->protocol == TCP || p->protocol == SCTP);
            if (!again && (void *)(frame + 1) <= (void *)(long)skb->data_end &&
                same_mac(frame->from, side ? f->high_mac : f->low_mac) && lives(f, t, p->protocol, now)) {
                renew(f, side, p, now);
                return carry(skb, p, &w->key, f, side);
            }
        }
    }
    return other_packet(skb, w, readable);
}

/*
 * What leaves by a device after it came through the stack. Datagrams say nothing of who began: a note keeps their
 * replies from being judged. Other connections are noted if a pod of this node opens them, so that one to the same
 * endpoint from the same port is not taken for it. An entry for datagrams that come unmarked, or for a connection that
 * begins unmarked, is about others, which the stack has translated to the same ends: from now on both are the stack's.
 */
INLINE int leave(struct __sk_buff *skb, int towards_pod) {
    int v6 = skb->protocol == IPV6;
    struct packet p = {};
    if ((!v6 && skb->protocol != IPV4) || !parse(skb, &p, v6) || !p.known || p.part == LATER_PART ||
        p.protocol == ICMP4 || p.protocol == ICMP6)
        return NEXT;
    u32 zero = 0;
    struct times *t = map_lookup(MAP(TIMES), &zero);
    struct flow_key key;
    u32 side = key_of(&key, &p);
    struct flow *f = map_lookup(MAP(FLOWS), &key);
    if (!t || (f && (!(p.protocol == UDP || p.begins) || skb->mark & JUDGED)))
        return NEXT;
    if (!towards_pod || p.protocol != UDP) {
        if (!map_lookup(MAP(PODS), &p.from))
            return NEXT;
    } else {
        struct address from = p.from;
        if (map_lookup(MAP(OWN), &from))
            return NEXT;
    }
    if (f)
        map_delete(MAP(FLOWS), &key);
    if (f || !(p.seen & RESET))
        note_stack(&key, &p, side, t, clock_ns());
    return NEXT;
}

int pod_out(struct __sk_buff *skb) { return leave(skb, 1); }

int uplink_out(struct __sk_buff *skb) { return leave(skb, 0); }

/* What other nodes and the outside send to pods of this node. */
int uplink_in(struct __sk_buff *skb) {
    int v6 = skb->protocol == IPV6;
    u32 zero = 0;
    struct packet p = {};
    if ((!v6 && skb->protocol != IPV4) || skb->vlan_present || !parse(skb, &p, v6) || p.part == LATER_PART ||
        !(p.known || p.error))
        return NEXT;
    struct pod *far = map_lookup(MAP(PODS), &p.to);
    struct times *t = map_lookup(MAP(TIMES), &zero);
    struct work *w = work();
    if (!far || !t || !w || map_lookup(MAP(PODS), &p.from))
        return NEXT;
    if (p.error)
        return error(skb, w, &p, v6, far->ifindex, 0);
    struct flow_key *key = &w->key;
    u32 side = key_of(key, &p);
    u64 now = clock_ns();
    struct flow *f = map_lookup(MAP(FLOWS), key);
    if (f && ((side ? f->ifindex[0] : f->ifindex[1]) != far->ifindex || (side ? f->ifindex[1] : f->ifindex[0])))
        f = 0;
    if (f && lives(f, t, p.protocol, now) && !(p.begins && (p.protocol == TCP || p.protocol == SCTP))) {
        renew(f, side, &p, now);
        return carry(skb, &p, key, f, side);
    }
    if (!p.begins && !(p.protocol == UDP && map_lookup(MAP(PEERS), &p.from)))
        return NEXT;
    w->packet = p;
    return begin(skb, w, &w->packet, key, side, 0, far, f, t, now);
}
