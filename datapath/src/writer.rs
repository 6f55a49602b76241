//! Packets of ours, built one behind the other in one buffer, so that a call sends many.
//!
//! `UDP_SEGMENT` takes packets of one size, of which only the last may be shorter; what does not fit
//! that begins another call. Small payloads share a packet.

use std::collections::VecDeque;
use std::sync::Arc;

use quinn_udp::EcnCodepoint;

use crate::Micros;
use crate::io::{SUPER_PACKET, Sent, Udp};
use crate::quic::{MIN_FRAMES, TAG, varint_size, write_datagram_header};
use crate::session::{Event, Route, Session};

/// Bytes of one call: below the 16-bit length of a super-packet with its headers.
const CALL: usize = 65_000;
/// Room for at least this many bytes of payload keeps a packet open for another.
const WORTH_WAITING: usize = 48;
/// An ACK frame gets so much room or goes alone.
const ACK_ROOM: usize = 48;
/// Calls that wait for the kernel to have room again.
const BACKLOG: usize = 64;

struct Waiting {
    route: Route,
    segment: usize,
    mark: Option<EcnCodepoint>,
    data: Vec<u8>,
}

struct Open {
    at: usize,
    eliciting: bool,
}

/// See the module. One packet may be open at a time; all packets in the buffer are of one session.
pub struct Writer {
    buffer: Box<[u8]>,
    /// Where the open packet begins, or the next would.
    start: usize,
    segment: usize,
    count: usize,
    /// A packet shorter than `segment` was the last.
    short: bool,
    /// One of the packets asks for an acknowledgement: then all in the call are marked, if any is.
    eliciting: bool,
    open: Option<Open>,
    session: Option<usize>,
    backlog: VecDeque<Waiting>,
    /// Calls that found no room, not even in the backlog.
    pub overflowed: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            buffer: vec![0; SUPER_PACKET + 2048].into_boxed_slice(),
            start: 0,
            segment: 0,
            count: 0,
            short: false,
            eliciting: false,
            open: None,
            session: None,
            backlog: VecDeque::new(),
            overflowed: 0,
        }
    }
}

impl Writer {
    /// Whether the kernel takes no more for now.
    pub fn blocked(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The socket to wait for while [`Writer::blocked`].
    pub fn blocked_on(&self) -> Option<usize> {
        self.backlog.front().map(|waiting| waiting.route.socket)
    }

    /// Whether the buffer holds something of another session than this.
    pub fn is_of_another(&self, session: usize) -> bool {
        self.session.is_some_and(|other| other != session)
    }

    /// Which session's packets are in the buffer.
    pub fn session(&self) -> Option<usize> {
        self.session
    }

    /// Put a payload of `size` bytes, which `fill` writes, into a packet.
    ///
    /// It must fit ([`Session::frames_room`]). The session must not be another's turn
    /// ([`Writer::is_of_another`]) and must be able to send.
    pub fn put(
        &mut self,
        session: &mut Session,
        index: usize,
        sockets: &[Option<Arc<Udp>>],
        size: usize,
        now: Micros,
        fill: impl FnOnce(&mut [u8]),
    ) -> Option<Event> {
        let prefix = session.prefix.len();
        let with_length = 1 + varint_size((prefix + size) as u64) + prefix + size;
        let end = session.packet_size - TAG;
        let mut event = None;
        if let Some(open) = &self.open
            && open.at + with_length > self.start + end
        {
            event = self.close(session, sockets, now);
        }
        if self.open.is_none() {
            event = self.begin(session, index, sockets).or(event);
            let header = session.header_size();
            let mut at = self.start + header;
            let spare = (end - header).saturating_sub(1 + prefix + size);
            if spare >= ACK_ROOM {
                at += session.write_ack(&mut self.buffer[at..at + spare], now);
            }
            self.open = Some(Open {
                at,
                eliciting: true,
            });
        }
        let Some(open) = &mut self.open else {
            return event;
        };
        let stop = self.start + end;
        open.eliciting = true;
        let waits = open.at + with_length + WORTH_WAITING <= stop;
        let length = waits.then_some(prefix + size);
        let mut at = open.at + write_datagram_header(length, &mut self.buffer[open.at..]);
        self.buffer[at..at + prefix].copy_from_slice(&session.prefix);
        at += prefix;
        fill(&mut self.buffer[at..at + size]);
        open.at = at + size;
        if waits {
            event
        } else {
            self.close(session, sockets, now).or(event)
        }
    }

    /// Put an ACK into a packet of its own.
    pub fn acknowledge(
        &mut self,
        session: &mut Session,
        index: usize,
        sockets: &[Option<Arc<Udp>>],
        now: Micros,
    ) {
        if self.open.is_some() {
            self.close(session, sockets, now);
        }
        self.begin(session, index, sockets);
        let at = self.start + session.header_size();
        let room = session.frames_room();
        let written = session.write_ack(&mut self.buffer[at..at + room], now);
        if written > 0 {
            self.open = Some(Open {
                at: at + written,
                eliciting: false,
            });
            self.close(session, sockets, now);
        }
    }

    /// Send everything that is in the buffer.
    pub fn finish(
        &mut self,
        session: &mut Session,
        sockets: &[Option<Arc<Udp>>],
        now: Micros,
    ) -> Option<Event> {
        let event = self
            .open
            .is_some()
            .then(|| self.close(session, sockets, now))
            .flatten();
        let sent = self.send(session, sockets);
        self.session = None;
        sent.or(event)
    }

    /// Forget what is in the buffer of a session that is gone.
    pub fn abandon(&mut self, index: usize) {
        if self.session == Some(index) {
            self.open = None;
            self.reset();
            self.session = None;
        }
    }

    /// Room for one more packet at `start`.
    fn begin(
        &mut self,
        session: &Session,
        index: usize,
        sockets: &[Option<Arc<Udp>>],
    ) -> Option<Event> {
        self.session = Some(index);
        let segments = session
            .route
            .and_then(|route| sockets.get(route.socket)?.as_ref())
            .map_or(1, |socket| socket.max_segments());
        if self.count >= segments || self.start + session.packet_size > CALL || self.short {
            return self.send(session, sockets);
        }
        None
    }

    fn close(
        &mut self,
        session: &mut Session,
        sockets: &[Option<Arc<Udp>>],
        now: Micros,
    ) -> Option<Event> {
        let open = self.open.take()?;
        let mut start = self.start;
        let fewest = start + session.header_size() + MIN_FRAMES;
        let mut end = open.at;
        if end < fewest {
            self.buffer[end..fewest].fill(0); // PADDING
            end = fewest;
        }
        end += TAG;
        let size = end - start;
        let mut event = None;
        if self.count > 0 && (size > self.segment || self.short) {
            event = self.send(session, sockets);
            self.buffer.copy_within(start..end, 0);
            start = 0;
        }
        if !session.seal(&mut self.buffer[start..start + size], open.eliciting, now) {
            self.start = start;
            return event;
        }
        if self.count == 0 {
            self.segment = size;
        } else if size < self.segment {
            self.short = true;
        }
        self.count += 1;
        self.eliciting |= open.eliciting;
        self.start = start + size;
        event
    }

    fn reset(&mut self) {
        (self.start, self.segment, self.count) = (0, 0, 0);
        (self.short, self.eliciting) = (false, false);
    }

    /// Send the packets that are closed.
    fn send(&mut self, session: &Session, sockets: &[Option<Arc<Udp>>]) -> Option<Event> {
        let (size, segment) = (self.start, self.segment);
        if self.count == 0 {
            return None;
        }
        // What asks for no acknowledgement could be lost for its mark without anybody knowing.
        let mark = (self.eliciting && session.sender.marks()).then_some(EcnCodepoint::Ect0);
        self.reset();
        let route = session.route?;
        let socket = sockets.get(route.socket)?.as_ref()?;
        if !self.backlog.is_empty() {
            self.wait(route, size, segment, mark);
            return None;
        }
        let data = &self.buffer[..size];
        match socket.send(route.peer, route.local, data, segment, mark) {
            Sent::Done => None,
            Sent::TooLarge => Some(Event::TooLarge(segment)),
            Sent::Blocked => {
                self.wait(route, size, segment, mark);
                None
            }
        }
    }

    fn wait(&mut self, route: Route, size: usize, segment: usize, mark: Option<EcnCodepoint>) {
        if self.backlog.len() >= BACKLOG {
            self.overflowed += 1;
            return;
        }
        let data = self.buffer[..size].to_vec();
        self.backlog.push_back(Waiting {
            route,
            segment,
            mark,
            data,
        });
    }

    /// Try again what waits for the kernel.
    pub fn retry(&mut self, sockets: &[Option<Arc<Udp>>]) {
        while let Some(waiting) = self.backlog.front() {
            let route = waiting.route;
            if let Some(socket) = sockets.get(route.socket).and_then(Option::as_ref) {
                let Waiting {
                    segment,
                    mark,
                    ref data,
                    ..
                } = *waiting;
                let sent = socket.send(route.peer, route.local, data, segment, mark);
                if sent == Sent::Blocked {
                    return;
                }
            }
            self.backlog.pop_front();
        }
    }
}
