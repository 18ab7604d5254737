/*
 * What policies say of a connection's first packet: layout.py's maps, walked as its text says. Follows packet.h.
 *
 * Everything lies in a row of the map WORK, one per processor, not on the stack, where the verifier would follow every
 * value. A verdict is certain or STACK: then the data plane below, which has the same policies, has to judge.
 */
enum { ALLOWED, DENIED, STACK };
enum { BY_POLICY, SPOOFED_ADDRESS, SPOOFED_MAC, SPOOFED_NEIGHBOUR, TAGGED }; /* why a packet was not let through */
enum { BY_TC, BY_XDP };

struct judgement {
    struct subject_key key;
    struct pair_key pair;
    struct block_key block;
    struct port_key port;
    struct said best;
    u64 identity;
    u64 rule; /* that decided: by direction - 1 */
    u64 egress_rule, ingress_rule;
};

/* A drop as the agent reads it. */
struct event {
    u64 time; /* nanoseconds of the monotonic clock */
    u64 rule;
    struct address from, to;
    u16 from_port, to_port;
    u8 protocol, direction, reason, by;
};

struct work {
    struct packet packet, quoted;
    struct judgement judgement;
    struct event event;
    struct flow_key key;
    struct flow flow;
};

/* A row of pairs or blocks: what it says to this port, if that has a lower rank than what was found before. */
INLINE void consider(struct judgement *j, struct packet *p, struct peer_rules *found) {
    if (!found)
        return;
    struct said *said = &found->rest;
    if (found->ports) {
        j->port.bits = PORT_BITS;
        __builtin_memcpy(j->port.ports, &found->ports, 8);
        j->port.protocol = p->protocol;
        j->port.pad = 0;
        j->port.port = p->protocol == TCP || p->protocol == UDP || p->protocol == SCTP ? p->to_port : 0;
        struct said *special = map_lookup(MAP(PORTS), &j->port);
        if (special && special->action != NOTHING)
            said = special;
    }
    if (said->action != NOTHING && (j->best.action == NOTHING || said->rank < j->best.rank))
        j->best = *said;
}

/* One end's policies; their rule is in j->rule. */
INLINE int judge_end(struct judgement *j, struct packet *p, struct address *end, struct address *other, u32 direction) {
    j->rule = 0;
    j->key.address = *end;
    j->key.direction = direction;
    struct subject *subject = map_lookup(MAP(SUBJECTS), &j->key);
    if (!subject)
        return ALLOWED;
    if (subject->flags & (CLOSED | LEAVE))
        return STACK;
    u64 *identity = map_lookup(MAP(PEERS), other);
    j->identity = identity ? *identity : 0;
    j->block.address[0] = other->w[0];
    j->block.address[1] = other->w[1];
    j->block.address[2] = other->w[2];
    j->block.address[3] = other->w[3];
#pragma unroll
    for (int i = 0; i < TIERS; i++) {
        struct tier *tier = &subject->tiers[i];
        j->best.action = NOTHING;
        if (tier->pairs) {
            j->pair.pairs = tier->pairs;
            j->pair.identity = j->identity;
            if (j->identity)
                consider(j, p, map_lookup(MAP(PAIRS), &j->pair));
            j->pair.identity = 0;
            consider(j, p, map_lookup(MAP(PAIRS), &j->pair));
        }
        if (tier->blocks) {
            j->block.bits = BLOCK_BITS;
            __builtin_memcpy(j->block.blocks, &tier->blocks, 8);
            consider(j, p, map_lookup(MAP(BLOCKS), &j->block));
        }
        u32 action = j->best.action;
        j->rule = j->best.rule;
        if (action == ALLOW)
            return ALLOWED;
        if (action == DENY)
            return DENIED;
        if (i == POLICIES && subject->isolated) {
            j->rule = subject->isolated;
            return DENIED;
        }
    }
    j->rule = 0;
    return ALLOWED;
}

INLINE void count(u64 rule, u32 bytes) {
    struct count *found = rule ? map_lookup(MAP(RULES), &rule) : 0;
    if (found) {
        found->packets++;
        found->bytes += bytes;
    }
}

INLINE void add(struct count *found, u32 bytes) {
    __sync_fetch_and_add(&found->packets, 1);
    __sync_fetch_and_add(&found->bytes, (u64)bytes);
}

INLINE void count_denial(u64 rule, u32 bytes) {
    struct count fresh = {.packets = 1, .bytes = bytes};
    struct count *found = map_lookup(MAP(DENIALS), &rule);
    if (found)
        add(found, bytes);
    else
        map_update(MAP(DENIALS), &rule, &fresh, 1);
}

/* Tell of a packet that is not let through. */
INLINE void tell(struct work *w, struct packet *p, u8 direction, u8 reason, u8 by, u64 rule) {
    struct event *e = &w->event;
    e->time = clock_ns();
    e->rule = rule;
    e->from = p->from;
    e->to = p->to;
    e->from_port = p->from_port;
    e->to_port = p->to_port;
    e->protocol = p->protocol;
    e->direction = direction;
    e->reason = reason;
    e->by = by;
    if (!ring_output(MAP(EVENTS), e, sizeof(*e), 0))
        return;
    u32 zero = 0;
    u64 *lost = map_lookup(MAP(LOST), &zero);
    if (lost)
        __sync_fetch_and_add(lost, 1);
}

/* Whether judging is possible: the number of the state of the maps, which has to be the same afterwards; 0: aside. */
INLINE u32 judging(void) {
    u32 zero = 0;
    struct config *c = map_lookup(MAP(CONFIG), &zero);
    return c ? *(volatile u32 *)&c->judging : 0;
}

/*
 * A connection's first packet. egress, ingress: whether this node has to judge that end. A pod and itself, the node and
 * its pods, and everything while the maps change are the stack's.
 */
INLINE int judge(struct work *w, struct packet *p, int egress, int ingress, u32 bytes, u8 by) {
    struct judgement *j = &w->judgement;
    u32 state = judging();
    if (!state || same_address(&p->from, &p->to) || map_lookup(MAP(OWN), &p->from) || map_lookup(MAP(OWN), &p->to))
        return STACK;
    j->key.address = p->from;
    j->key.direction = EGRESS;
    struct subject *sender = map_lookup(MAP(SUBJECTS), &j->key);
    j->key.address = p->to;
    j->key.direction = INGRESS;
    struct subject *receiver = map_lookup(MAP(SUBJECTS), &j->key);
    /* A pod of this node that is not served here, and the node's other way to itself. */
    if ((sender && !egress) || (receiver && !ingress))
        return STACK;
    if (sender && receiver && sender->pod && sender->pod == receiver->pod)
        return STACK;
    int verdict = ALLOWED;
    u32 direction = EGRESS;
    j->egress_rule = 0;
    if (egress) {
        verdict = judge_end(j, p, &p->from, &p->to, EGRESS);
        j->egress_rule = j->rule;
    }
    if (ingress && verdict == ALLOWED) {
        direction = INGRESS;
        verdict = judge_end(j, p, &p->to, &p->from, INGRESS);
    } else if (verdict == ALLOWED) {
        j->rule = 0;
    }
    if (verdict == STACK || judging() != state)
        return STACK;
    count(j->rule, bytes);
    if (verdict == DENIED) {
        count_denial(j->rule, bytes);
        tell(w, p, direction, BY_POLICY, by, j->rule);
    } else if (ingress) {
        count(j->egress_rule, bytes);
    }
    return verdict;
}
