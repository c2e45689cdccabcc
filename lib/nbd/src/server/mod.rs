//! The server's side of the handshake.
//!
//! ```text
//!   ClientFlags ──► Option ◄──────────────────────────────┐
//!                    │ │ │                                │
//!                    │ │ └─ List, Describe, Open: the caller asks the VDI table, then
//!                    │ │    listed / found / refused ─────┤
//!                    │ └─── StartTls: the caller upgrades │
//!                    │      the stream, then secured ─────┘
//!                    └───── Ready (GO, EXPORT_NAME) or Closed
//! ```
//!
//! The caller owns the stream and one input buffer: call [`Handshake::step`], send [`Handshake::take_output`], do what the
//! step says. One option is handled per step, so the output never holds more than the answer to one.

mod options;

use crate::wire::{self, Broken, Reader, hflag, info, opt, rep};
use crate::{Export, wire::IHAVEOPT};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use options::{InfoRequest, MetaRequest};

/// What a listener says about encryption.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsPolicy {
    /// `STARTTLS` is refused.
    #[default]
    Off,
    /// The client may ask for it.
    Allowed,
    /// Nothing but `STARTTLS` and `ABORT` is answered before it.
    Required,
}

/// What the caller has to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Send the output, then read more.
    NeedInput,
    /// An option was answered: send the output, call again.
    Progress,
    /// Call `listed` or `refused`.
    List,
    /// Look an export up without opening it; call `found` or `refused`.
    Describe(String),
    /// Open an export; call `found` or `refused`. A `found` leads to `Ready`.
    Open(String),
    /// Send the output, encrypt the stream, call `secured`.
    StartTls,
    /// Send the output: the transmission phase begins, with whatever is left in the input.
    Ready(Agreed),
    /// Send the output and close.
    Closed,
}

/// What the transmission phase has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// Use structured replies.
    pub structured: bool,
    /// Answer block status.
    pub base_allocation: bool,
}

/// Why the caller could not do what a step asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such export.
    Unknown(String),
    /// Not allowed, or not now.
    Policy(String),
    /// The server is stopping.
    Shutdown(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    ClientFlags,
    Option,
    /// Throwing away the payload of an option that is too long.
    Skip {
        left: usize,
        option: u32,
    },
    Listing,
    /// Waiting for the caller about `INFO` or `GO`.
    Asking {
        option: u32,
        request: InfoRequest,
    },
    AskingExportName {
        name: String,
    },
    AskingMeta {
        option: u32,
        request: MetaRequest,
    },
    TlsPending,
    Over,
}

/// Server handshake of one connection.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    out: BytesMut,
    policy: TlsPolicy,
    encrypted: bool,
    no_zeroes: bool,
    structured: bool,
    /// Export for which `base:allocation` was set, if it was.
    context: Option<String>,
    options: u32,
}

impl Handshake {
    /// A fresh connection. The greeting is already in the output.
    pub fn new(policy: TlsPolicy) -> Self {
        let mut out = BytesMut::with_capacity(1024);
        out.put_u64(wire::NBDMAGIC);
        out.put_u64(IHAVEOPT);
        out.put_u16(hflag::FIXED_NEWSTYLE | hflag::NO_ZEROES);
        Self {
            state: State::ClientFlags,
            out,
            policy,
            encrypted: false,
            no_zeroes: false,
            structured: false,
            context: None,
            options: 0,
        }
    }

    /// Is the stream encrypted?
    pub fn encrypted(&self) -> bool {
        self.encrypted
    }

    /// Bytes to send before the next step.
    pub fn take_output(&mut self) -> Bytes {
        self.out.split().freeze()
    }

    /// Consume at most one message of the client from `input`.
    pub fn step(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        match self.state {
            State::ClientFlags => self.client_flags(input),
            State::Option => self.option(input),
            State::Skip { left, option } => Ok(self.skip(left, option, input)),
            State::Over => Ok(Step::Closed),
            State::Listing
            | State::Asking { .. }
            | State::AskingExportName { .. }
            | State::AskingMeta { .. }
            | State::TlsPending => Err(Broken::Unexpected("step called while an answer is owed")),
        }
    }

    fn client_flags(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        let Some(flags) = Reader(input).u32() else { return Ok(Step::NeedInput) };
        input.advance(4);
        if flags & !u32::from(hflag::FIXED_NEWSTYLE | hflag::NO_ZEROES) != 0 {
            return Err(Broken::Flags(flags));
        }
        self.no_zeroes = flags & u32::from(hflag::NO_ZEROES) != 0;
        self.state = State::Option;
        Ok(Step::Progress)
    }

    fn option(&mut self, input: &mut BytesMut) -> Result<Step, Broken> {
        let mut r = Reader(input);
        let (Some(magic), Some(option), Some(len)) = (r.u64(), r.u32(), r.u32()) else {
            // Tell a client of another protocol at once, not when it has sent 16 bytes.
            let known = input.len().min(8);
            if input[..known] != IHAVEOPT.to_be_bytes()[..known] {
                return Err(Broken::Unexpected("not an NBD option; is the client an NBD client?"));
            }
            return Ok(Step::NeedInput);
        };
        if magic != IHAVEOPT {
            return Err(Broken::Magic { what: "option", got: magic });
        }
        let len = len as usize;
        if len > wire::MAX_SKIP {
            let max = wire::MAX_SKIP as u64;
            return Err(Broken::TooLong { what: "option", len: len as u64, max });
        }
        if len > wire::MAX_OPTION {
            input.advance(16);
            self.count()?;
            return Ok(self.skip(len, option, input));
        }
        if input.len() < 16 + len {
            return Ok(Step::NeedInput);
        }
        self.count()?;
        input.advance(16);
        let payload = input.split_to(len);
        let step = self.dispatch(option, &payload);
        if step == Step::StartTls && !input.is_empty() {
            // Whoever put bytes behind STARTTLS wants them to be read as if they had been encrypted.
            return Err(Broken::Unexpected("data sent ahead of the TLS handshake"));
        }
        Ok(step)
    }

    fn count(&mut self) -> Result<(), Broken> {
        self.options += 1;
        if self.options > wire::MAX_OPTIONS {
            return Err(Broken::TooLong {
                what: "handshake, in options,",
                len: u64::from(self.options),
                max: u64::from(wire::MAX_OPTIONS),
            });
        }
        Ok(())
    }

    fn skip(&mut self, left: usize, option: u32, input: &mut BytesMut) -> Step {
        let now = left.min(input.len());
        input.advance(now);
        if now < left {
            self.state = State::Skip { left: left - now, option };
            return Step::NeedInput;
        }
        self.state = State::Option;
        if option == opt::EXPORT_NAME {
            return self.close();
        }
        self.reply_error(option, rep::ERR_TOO_BIG, "option is longer than 64 KiB")
    }

    fn dispatch(&mut self, option: u32, payload: &[u8]) -> Step {
        if self.policy == TlsPolicy::Required
            && !self.encrypted
            && !matches!(option, opt::STARTTLS | opt::ABORT)
        {
            return match option {
                opt::EXPORT_NAME => self.close(), // it has no error reply
                _ => self.reply_error(option, rep::ERR_TLS_REQD, "this server requires TLS"),
            };
        }
        match option {
            opt::EXPORT_NAME => match wire::text(payload) {
                Some(name) => {
                    self.state = State::AskingExportName { name: name.to_owned() };
                    Step::Open(name.to_owned())
                }
                None => self.close(),
            },
            opt::ABORT => {
                self.put_reply(option, rep::ACK, &[]);
                self.close()
            }
            opt::LIST if payload.is_empty() => {
                self.state = State::Listing;
                Step::List
            }
            opt::STARTTLS if payload.is_empty() => self.start_tls(),
            opt::STRUCTURED_REPLY if payload.is_empty() => {
                self.structured = true;
                self.put_reply(option, rep::ACK, &[]);
                Step::Progress
            }
            opt::LIST | opt::STARTTLS | opt::STRUCTURED_REPLY => {
                self.reply_error(option, rep::ERR_INVALID, "this option carries no data")
            }
            opt::INFO | opt::GO => match InfoRequest::parse(payload) {
                Some(request) => {
                    let name = request.name.clone();
                    self.state = State::Asking { option, request };
                    if option == opt::GO { Step::Open(name) } else { Step::Describe(name) }
                }
                None => {
                    self.reply_error(option, rep::ERR_INVALID, "malformed export name or information list")
                }
            },
            opt::LIST_META_CONTEXT | opt::SET_META_CONTEXT => self.meta(option, payload),
            _ => self.reply_error(option, rep::ERR_UNSUP, "option not supported"),
        }
    }

    fn start_tls(&mut self) -> Step {
        let option = opt::STARTTLS;
        if self.encrypted {
            return self.reply_error(option, rep::ERR_INVALID, "the stream is encrypted already");
        }
        if self.policy == TlsPolicy::Off {
            return self.reply_error(option, rep::ERR_POLICY, "TLS is not configured on this server");
        }
        self.put_reply(option, rep::ACK, &[]);
        self.state = State::TlsPending;
        Step::StartTls
    }

    /// The stream is encrypted now.
    pub fn secured(&mut self) {
        debug_assert_eq!(self.state, State::TlsPending);
        // What was agreed in plain text may have been forged.
        (self.encrypted, self.structured, self.context) = (true, false, None);
        self.state = State::Option;
    }

    fn meta(&mut self, option: u32, payload: &[u8]) -> Step {
        if !self.structured {
            return self.reply_error(option, rep::ERR_INVALID, "ask for structured replies first");
        }
        if option == opt::SET_META_CONTEXT {
            self.context = None; // a new set replaces the old one, also when it fails
        }
        match MetaRequest::parse(payload) {
            Some(request) => {
                let name = request.name.clone();
                self.state = State::AskingMeta { option, request };
                Step::Describe(name)
            }
            None => self.reply_error(option, rep::ERR_INVALID, "malformed metadata context query"),
        }
    }

    /// Answer to `Step::List`: names. Those longer than the protocol allows are left out.
    pub fn listed<'a>(&mut self, names: impl IntoIterator<Item = &'a str>) -> Step {
        debug_assert_eq!(self.state, State::Listing);
        for name in names {
            if name.len() <= wire::MAX_NAME {
                let head = (name.len() as u32).to_be_bytes();
                self.put_reply(opt::LIST, rep::SERVER, &[&head, name.as_bytes()]);
            }
        }
        self.put_reply(opt::LIST, rep::ACK, &[]);
        self.state = State::Option;
        Step::Progress
    }

    /// Answer to `Step::Describe` and `Step::Open`: the export is there.
    pub fn found(&mut self, export: &Export) -> Step {
        match std::mem::replace(&mut self.state, State::Option) {
            State::Asking { option, request } => {
                self.put_infos(option, &request, export);
                self.put_reply(option, rep::ACK, &[]);
                if option == opt::GO { self.ready(&request.name) } else { Step::Progress }
            }
            State::AskingExportName { name } => {
                self.out.put_u64(export.size);
                self.out.put_u16(export.flags(self.structured));
                if !self.no_zeroes {
                    self.out.put_bytes(0, 124);
                }
                self.ready(&name)
            }
            State::AskingMeta { option, request } => {
                self.put_contexts(option, request);
                Step::Progress
            }
            other => {
                debug_assert!(false, "found in {other:?}");
                self.close()
            }
        }
    }

    /// Answer to `Step::List`, `Step::Describe` and `Step::Open`: no.
    pub fn refused(&mut self, why: &Refusal) -> Step {
        let (code, text) = match why {
            Refusal::Unknown(t) => (rep::ERR_UNKNOWN, t),
            Refusal::Policy(t) => (rep::ERR_POLICY, t),
            Refusal::Shutdown(t) => (rep::ERR_SHUTDOWN, t),
        };
        match std::mem::replace(&mut self.state, State::Option) {
            State::Listing => self.reply_error(opt::LIST, code, text),
            State::Asking { option, .. } | State::AskingMeta { option, .. } => {
                self.reply_error(option, code, text)
            }
            other => {
                debug_assert!(matches!(other, State::AskingExportName { .. }), "refused in {other:?}");
                self.close()
            }
        }
    }

    fn ready(&mut self, name: &str) -> Step {
        self.state = State::Over;
        // A context set for another export does not count.
        let base_allocation = self.structured && self.context.as_deref() == Some(name);
        Step::Ready(Agreed { structured: self.structured, base_allocation })
    }

    fn close(&mut self) -> Step {
        self.state = State::Over;
        Step::Closed
    }

    fn put_infos(&mut self, option: u32, request: &InfoRequest, export: &Export) {
        let size = export.size.to_be_bytes();
        let flags = export.flags(self.structured).to_be_bytes();
        self.put_reply(option, rep::INFO, &[&info::EXPORT.to_be_bytes(), &size, &flags]);
        if request.wants(info::NAME) {
            let name = if export.name.len() <= wire::MAX_NAME { &export.name } else { &request.name };
            self.put_reply(option, rep::INFO, &[&info::NAME.to_be_bytes(), name.as_bytes()]);
        }
        if request.wants(info::DESCRIPTION) && !export.description.is_empty() {
            let text = wire::clip(&export.description);
            self.put_reply(option, rep::INFO, &[&info::DESCRIPTION.to_be_bytes(), text.as_bytes()]);
        }
        // Everyone is told what works best; only a client that asked has promised to heed a minimum.
        let minimum = if request.wants(info::BLOCK_SIZE) { export.minimum_block() } else { 1 };
        let (min, pref) = (minimum.to_be_bytes(), wire::PREFERRED_BLOCK.to_be_bytes());
        let max = wire::MAX_REQUEST.to_be_bytes();
        self.put_reply(option, rep::INFO, &[&info::BLOCK_SIZE.to_be_bytes(), &min, &pref, &max]);
    }

    fn put_contexts(&mut self, option: u32, request: MetaRequest) {
        let set = option == opt::SET_META_CONTEXT;
        if if set { request.sets } else { request.lists } {
            // In a list the id means nothing and should be zero.
            let id = if set { wire::BASE_ALLOCATION_ID } else { 0 };
            self.put_reply(option, rep::META_CONTEXT, &[&id.to_be_bytes(), wire::BASE_ALLOCATION.as_bytes()]);
            if set {
                self.context = Some(request.name);
            }
        }
        self.put_reply(option, rep::ACK, &[]);
    }

    fn reply_error(&mut self, option: u32, code: u32, text: &str) -> Step {
        let text = wire::clip(text);
        self.put_reply(option, code, &[text.as_bytes()]);
        Step::Progress
    }

    fn put_reply(&mut self, option: u32, code: u32, parts: &[&[u8]]) {
        self.out.put_u64(wire::OPTION_REPLY);
        self.out.put_u32(option);
        self.out.put_u32(code);
        self.out.put_u32(parts.iter().map(|p| p.len() as u32).sum());
        parts.iter().for_each(|p| self.out.put_slice(p));
    }
}
