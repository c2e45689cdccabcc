//! The client's handshake.
//!
//! ```text
//!   Greeting ─► StartTls? ─► Structured? ─► Context? ─► Go ──────► Ready
//!                                              │         └ UNSUP ► ExportName ─► Ready
//!                                              └────► List ─► Listed
//! ```
//! One option is under way at a time. A server that lacks an optional feature is fine; one that lacks a required one is not.

use crate::wire::{self, Broken, IHAVEOPT, Reader, hflag, info, opt, rep, tflag};
use bytes::{Buf, BufMut, Bytes, BytesMut};

/// Longest option reply a server may send, bytes.
const MAX_REPLY: usize = 64 << 10;
/// Longest list of exports we keep.
const MAX_EXPORTS: usize = 1 << 20;

/// What the client came for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Attach an export.
    Attach(String),
    /// See what is there.
    List,
}

/// What the client would like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wishes {
    /// What for.
    pub goal: Goal,
    /// Insist on TLS. Without it the stream stays plain.
    pub tls: bool,
    /// Use structured replies where the server has them.
    pub structured: bool,
    /// Use `base:allocation` where the server has it; needs structured replies.
    pub base_allocation: bool,
}

impl Wishes {
    /// Everything but TLS.
    pub fn attach(name: impl Into<String>) -> Self {
        Self { goal: Goal::Attach(name.into()), tls: false, structured: true, base_allocation: true }
    }
    /// Only names.
    pub fn list() -> Self {
        Self { goal: Goal::List, tls: false, structured: false, base_allocation: false }
    }
}

/// An attached export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connected {
    /// Bytes.
    pub size: u64,
    /// `wire::tflag` bits.
    pub flags: u16,
    /// Structured replies are on.
    pub structured: bool,
    /// Id of `base:allocation`, if it is on.
    pub base_allocation: Option<u32>,
    /// Minimum, preferred and maximum block in bytes.
    pub blocks: (u32, u32, u32),
}

impl Connected {
    /// Does the server refuse writes?
    pub fn read_only(&self) -> bool {
        self.flags & tflag::READ_ONLY != 0
    }
}

/// What the caller has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the output, read more.
    NeedInput,
    /// Send the output, call again.
    Progress,
    /// Send the output, encrypt the stream, call `secured`.
    StartTls,
    /// Attached.
    Ready(Connected),
    /// Export names, in the server's order. Send the output and close.
    Listed(Vec<String>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    /// Waiting for replies to this option.
    Option(u32),
    TlsPending,
    ExportName,
    Over,
}

/// Client handshake of one connection.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    out: BytesMut,
    wishes: Wishes,
    no_zeroes: bool,
    got: Connected,
    export_seen: bool,
    names: Vec<String>,
}

impl Handshake {
    /// A fresh connection; the server speaks first.
    pub fn new(wishes: Wishes) -> Self {
        Self {
            state: State::Greeting,
            out: BytesMut::new(),
            wishes,
            no_zeroes: false,
            got: Connected {
                size: 0,
                flags: 0,
                structured: false,
                base_allocation: None,
                blocks: (1, wire::PREFERRED_BLOCK, wire::MAX_REQUEST),
            },
            export_seen: false,
            names: Vec::new(),
        }
    }

    /// Bytes to send.
    pub fn take_output(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    /// The stream is encrypted now.
    pub fn secured(&mut self) {
        debug_assert_eq!(self.state, State::TlsPending);
        self.after(opt::STARTTLS);
    }

    /// Consume at most one message of the server.
    pub fn step(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        match self.state {
            State::Greeting => self.greeting(input),
            State::Option(option) => self.reply(option, input),
            State::ExportName => self.export_name(input),
            State::TlsPending | State::Over => Err(Broken::Unexpected("step called out of turn")),
        }
    }

    fn greeting(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        let mut r = Reader(input);
        let (Some(magic), Some(second), Some(flags)) = (r.u64(), r.u64(), r.u16()) else {
            return Ok(Step::NeedInput);
        };
        if magic != wire::NBDMAGIC {
            return Err(Broken::Magic { what: "server greeting", got: magic });
        }
        if second != IHAVEOPT {
            return Err(Broken::Unexpected("server speaks the old handshake, which is not supported"));
        }
        if flags & hflag::FIXED_NEWSTYLE == 0 {
            return Err(Broken::Unexpected("server does not speak fixed newstyle"));
        }
        input.advance(18);
        self.no_zeroes = flags & hflag::NO_ZEROES != 0;
        self.out.put_u32(u32::from(flags & (hflag::FIXED_NEWSTYLE | hflag::NO_ZEROES)));
        self.after(0);
        Ok(Step::Progress)
    }

    /// Send the option that follows `option` in the order of the diagram.
    fn after(&mut self, option: u32) {
        let w = &self.wishes;
        let next = match option {
            0 if w.tls => opt::STARTTLS,
            0 | opt::STARTTLS if w.structured => opt::STRUCTURED_REPLY,
            opt::STRUCTURED_REPLY if w.base_allocation && self.got.structured && w.goal != Goal::List => {
                opt::SET_META_CONTEXT
            }
            _ if w.goal == Goal::List => opt::LIST,
            _ => opt::GO,
        };
        let name = match &w.goal {
            Goal::Attach(name) => name.clone(),
            Goal::List => String::new(),
        };
        let mut body = BytesMut::new();
        if matches!(next, opt::SET_META_CONTEXT | opt::GO) {
            body.put_u32(name.len() as u32);
            body.put_slice(name.as_bytes());
        }
        if next == opt::SET_META_CONTEXT {
            body.put_u32(1);
            body.put_u32(wire::BASE_ALLOCATION.len() as u32);
            body.put_slice(wire::BASE_ALLOCATION.as_bytes());
        } else if next == opt::GO {
            body.put_u16(1);
            body.put_u16(info::BLOCK_SIZE);
        }
        self.send(next, &body);
        self.state = State::Option(next);
    }

    fn send(&mut self, option: u32, body: &[u8]) {
        self.out.put_u64(IHAVEOPT);
        self.out.put_u32(option);
        self.out.put_u32(body.len() as u32);
        self.out.put_slice(body);
    }

    fn reply(&mut self, option: u32, input: &mut BytesMut) -> Result<Step, Broken> {
        let mut r = Reader(input);
        let (Some(magic), Some(of), Some(code), Some(len)) = (r.u64(), r.u32(), r.u32(), r.u32()) else {
            return Ok(Step::NeedInput);
        };
        if magic != wire::OPTION_REPLY {
            return Err(Broken::Magic { what: "option reply", got: magic });
        }
        if of != option {
            return Err(Broken::Unexpected("reply to an option that was not sent"));
        }
        let len = len as usize;
        if len > MAX_REPLY {
            return Err(Broken::TooLong { what: "option reply", len: len as u64, max: MAX_REPLY as u64 });
        }
        if input.len() < 20 + len {
            return Ok(Step::NeedInput);
        }
        input.advance(20);
        let payload = input.split_to(len);
        if code & rep::ERROR != 0 {
            return self.refused(option, code, &payload);
        }
        match (option, code) {
            (opt::STARTTLS, rep::ACK) if !input.is_empty() => {
                Err(Broken::Unexpected("data sent ahead of the TLS handshake"))
            }
            (opt::STARTTLS, rep::ACK) => {
                self.state = State::TlsPending;
                Ok(Step::StartTls)
            }
            (opt::GO, rep::ACK) if !self.export_seen => {
                Err(Broken::Unexpected("server attached an export without telling its size"))
            }
            (opt::GO, rep::ACK) => {
                self.state = State::Over;
                Ok(Step::Ready(self.got.clone()))
            }
            (opt::LIST, rep::ACK) => {
                self.send(opt::ABORT, &[]);
                self.state = State::Over;
                Ok(Step::Listed(std::mem::take(&mut self.names)))
            }
            (_, rep::ACK) => {
                self.got.structured |= option == opt::STRUCTURED_REPLY;
                self.after(option);
                Ok(Step::Progress)
            }
            _ => self.content(option, code, &payload).map(|()| Step::Progress),
        }
    }

    fn content(&mut self, option: u32, code: u32, payload: &[u8]) -> Result<(), Broken> {
        let short = Broken::Unexpected("malformed option reply");
        let mut r = Reader(payload);
        match (option, code) {
            (opt::LIST, rep::SERVER) => {
                if self.names.len() >= MAX_EXPORTS {
                    let (len, max) = (self.names.len() as u64, MAX_EXPORTS as u64);
                    return Err(Broken::TooLong { what: "export list, in rows,", len, max });
                }
                self.names.push(r.string().ok_or(short)?.to_owned());
            }
            (opt::SET_META_CONTEXT, rep::META_CONTEXT) => {
                let id = r.u32().ok_or(short)?;
                if r.0 == wire::BASE_ALLOCATION.as_bytes() {
                    self.got.base_allocation = Some(id);
                }
            }
            (opt::GO, rep::INFO) => match r.u16().ok_or(short.clone())? {
                info::EXPORT => {
                    self.got.size = r.u64().ok_or(short.clone())?;
                    self.got.flags = r.u16().ok_or(short)?;
                    self.export_seen = true;
                }
                info::BLOCK_SIZE => {
                    let mut next = || r.u32().ok_or(short.clone());
                    self.got.blocks = (next()?, next()?, next()?);
                }
                _ => {} // informational
            },
            _ => return Err(Broken::Unexpected("reply of a kind this option does not have")),
        }
        Ok(())
    }

    fn refused(&mut self, option: u32, code: u32, payload: &[u8]) -> Result<Step, Broken> {
        match option {
            opt::STRUCTURED_REPLY | opt::SET_META_CONTEXT if code != rep::ERR_TLS_REQD => {
                self.after(option);
                return Ok(Step::Progress);
            }
            opt::GO if code == rep::ERR_UNSUP => {
                if let Goal::Attach(name) = &self.wishes.goal {
                    let name = name.clone();
                    self.send(opt::EXPORT_NAME, name.as_bytes());
                }
                self.state = State::ExportName;
                return Ok(Step::Progress);
            }
            _ => {}
        }
        let text = wire::text(payload).filter(|t| !t.is_empty()).unwrap_or(match code {
            rep::ERR_UNKNOWN => "no such export",
            rep::ERR_TLS_REQD => "server requires TLS",
            rep::ERR_SHUTDOWN => "server is shutting down",
            rep::ERR_POLICY => "not allowed by the server's policy",
            _ => "server refused",
        });
        Err(Broken::Refused(text.to_owned()))
    }

    fn export_name(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        let want = if self.no_zeroes { 10 } else { 134 };
        if input.len() < want {
            return Ok(Step::NeedInput);
        }
        let mut r = Reader(input);
        (self.got.size, self.got.flags) = (r.u64().unwrap_or(0), r.u16().unwrap_or(0));
        input.advance(want);
        self.state = State::Over;
        Ok(Step::Ready(self.got.clone()))
    }
}
