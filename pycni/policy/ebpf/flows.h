/*
 * Connections: who finds which entry, how long it counts, and what a packet makes of it. Follows packet.h; the layout
 * and the same rules in Python are in flows.py.
 */
INLINE int above(struct address *a, struct address *b) {
    if (a->w[3] != b->w[3])
        return a->w[3] > b->w[3];
    if (a->w[2] != b->w[2])
        return a->w[2] > b->w[2];
    if (a->w[1] != b->w[1])
        return a->w[1] > b->w[1];
    return a->w[0] > b->w[0];
}

/* The key of the connection a packet belongs to; returns which side sent it. */
INLINE u32 key_of(struct flow_key *key, struct packet *p) {
    key->protocol = p->protocol;
    key->pad[0] = key->pad[1] = key->pad[2] = 0;
    if (above(&p->from, &p->to)) {
        key->low = p->to;
        key->high = p->from;
        key->low_port = p->to_port;
        key->high_port = p->from_port;
        return 1;
    }
    key->low = p->from;
    key->high = p->to;
    key->low_port = p->from_port;
    key->high_port = p->to_port;
    return 0;
}

INLINE u64 lasts(struct times *t, u8 protocol, u8 low, u8 high) {
    if (protocol == TCP || protocol == SCTP) {
        if ((low | high) & RESET)
            return t->reset;
        if ((low | high) & ENDED)
            return t->ending;
        if (low & high & ANSWERED)
            return protocol == TCP ? t->open : t->association;
        return t->opening;
    }
    return low && high ? t->datagrams : t->datagram;
}

INLINE u64 remembered(struct times *t, u8 protocol, u8 low, u8 high) {
    return protocol == UDP ? t->noted : lasts(t, protocol, low, high);
}

/* A packet of a connection's one side. Who goes on was not reset: the other did not accept that. */
INLINE void note_state(u8 *side, u8 said) {
    u8 before = *side, after = said & RESET ? before | said : (before | said) & ~RESET;
    if (after != before)
        *side = after;
}

/* Whether the stack knows this connection. */
INLINE int stacks(struct flow_key *key, struct times *t, u64 now) {
    struct seen *found = map_lookup(MAP(SEEN), key);
    return found && now - found->used <= remembered(t, key->protocol, found->seen[0], found->seen[1]);
}

/* A packet that came through the stack. Datagrams of which no note can be taken stop all judging of datagrams. */
INLINE void note_stack(struct flow_key *key, struct packet *p, u32 side, struct times *t, u64 now) {
    struct seen *found = map_lookup(MAP(SEEN), key);
    if (found) {
        note_state(&found->seen[side & 1], p->seen);
        if (now - found->used > 1000000000ull)
            found->used = now;
        return;
    }
    struct seen fresh = {.used = now};
    if (side)
        fresh.seen[1] = p->seen;
    else
        fresh.seen[0] = p->seen;
    if (!map_update(MAP(SEEN), key, &fresh, 0) || p->protocol != UDP)
        return;
    u32 zero = 0;
    u64 *grace = map_lookup(MAP(GRACE), &zero);
    if (grace)
        *grace = now + t->grace;
}
