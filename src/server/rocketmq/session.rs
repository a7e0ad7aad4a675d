//! One connection's conversation, without its socket.
//!
//! Owns: requests that wait for the shard, verbs to hand over, answers to write.
//! Promises: every request that wants an answer gets exactly one; answers may overtake each other, as clients expect; a client that
//! does not read its answers is not asked for more work.
//! Does not know: sockets, time.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use dassie_rocketmq::code::{FLAG_RESPONSE, version};
use dassie_rocketmq::command::Fields;
use dassie_rocketmq::header::NotifyConsumerIdsChanged;
use dassie_rocketmq::{Command, Head, HeaderCodec, Language, RequestCode, ResponseCode, encode, encode_head};

use super::Front;
use super::clients::{self, Joins};
use super::group::Member;
use super::output::Output;
use super::refuse::{Refused, refused, unsupported};
use super::{offsets, pull, route, send, topics};
use crate::broker::api::{Event, Op, Refusal, Reply, Verb};
use crate::broker::message::{Batches, Cache};
use crate::broker::topology::Topology;
use crate::security::{Action, Denied, Principal, Resource, anonymous, authorize};

/// Requests of one connection that may wait at once.
const PENDING_MAX: usize = 8_192;
/// Answers that wait to be written before more are made. Bytes.
pub(super) const OUTPUT_MAX: usize = 4 * 1024 * 1024;

/// What an answer needs to know of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    opaque: i32,
    codec: HeaderCodec,
    /// Nobody waits for an answer.
    one_way: bool,
}

impl Asked {
    /// The same request, as if nobody waited for an answer.
    pub(super) fn silently(self) -> Self {
        Self { one_way: true, ..self }
    }
}

/// What is done with the shard's reply.
#[derive(Debug)]
pub(super) enum Wait {
    Send(send::Sent),
    Pull(pull::Pulled),
    Offset(offsets::Wanted),
    /// An answer without fields.
    Done,
    /// A group's offset; nobody may wait for an answer, but leaving the group does.
    Commit,
    /// One of the topics that a heartbeat waits for.
    Join(u64),
}

impl Wait {
    /// The shard's reply matters even if the client wants none.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Commit | Self::Join(_))
    }
}

/// See the module.
pub(super) struct Session {
    pub(super) front: Arc<Front>,
    pub(super) peer: SocketAddr,
    pub(super) principal: Principal,
    pub(super) output: Output,
    pub(super) topology: Arc<Topology>,
    pub(super) member: Member,
    pub(super) joins: Joins,
    pub(super) log: Box<dyn Batches + Send>,
    pub(super) cache: Cache,
    verbs: Vec<Verb>,
    pending: HashMap<u64, (Asked, Wait)>,
    sends: usize,
    /// Offsets on their way.
    commits: usize,
    /// Clients that leave once those have arrived.
    leaving: Vec<(Asked, clients::Leaving)>,
    last_request: u64,
    last_opaque: i32,
    backlog: VecDeque<Event>,
    ending: bool,
}

impl Session {
    pub(super) fn new(
        front: Arc<Front>,
        peer: SocketAddr,
        topology: Arc<Topology>,
        log: Box<dyn Batches + Send>,
        member: Member,
    ) -> Self {
        // An IPv4 peer of an IPv6 socket is written into records as IPv4.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        Self {
            front,
            peer,
            principal: anonymous(peer.ip()),
            output: Output::default(),
            topology,
            member,
            joins: Joins::default(),
            log,
            cache: Cache::default(),
            verbs: Vec::new(),
            pending: HashMap::new(),
            sends: 0,
            commits: 0,
            leaving: Vec::new(),
            last_request: 0,
            last_opaque: 0,
            backlog: VecDeque::new(),
            ending: false,
        }
    }

    // ---- what clients say

    /// Takes one command.
    pub(super) fn on_command(&mut self, command: &Command<'_>) {
        // We ask clients nothing that they would answer.
        if command.head.is_response() {
            return;
        }
        let asked =
            Asked { opaque: command.head.opaque, codec: command.codec, one_way: command.head.is_one_way() };
        if let Err(refused) = self.dispatch(command, asked) {
            self.refuse(asked, refused);
        }
    }

    fn dispatch(&mut self, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
        authorize(&self.principal, Action::Read, Resource::Own)?;
        if self.pending.len() >= PENDING_MAX {
            let text = "[REJECTREQUEST]system busy: too many requests of this connection wait";
            return Err(refused(ResponseCode::SystemBusy, text));
        }
        match command.head.request_code() {
            Some(RequestCode::SendMessage | RequestCode::SendMessageV2 | RequestCode::SendBatchMessage) => {
                send::on_send(self, command, asked)
            }
            Some(RequestCode::PullMessage | RequestCode::LitePullMessage) => {
                pull::on_pull(self, command, asked)
            }
            Some(RequestCode::QueryConsumerOffset) => offsets::on_query(self, command, asked),
            Some(RequestCode::UpdateConsumerOffset) => offsets::on_update(self, command, asked),
            Some(RequestCode::SearchOffsetByTimestamp) => offsets::on_search(self, command, asked),
            Some(RequestCode::GetMaxOffset) => offsets::on_max(self, command, asked),
            Some(RequestCode::GetMinOffset) => offsets::on_min(self, command, asked),
            Some(RequestCode::GetEarliestMsgStoretime) => offsets::on_earliest(self, command, asked),
            Some(RequestCode::HeartBeat) => clients::on_heartbeat(self, command, asked),
            Some(RequestCode::UnregisterClient) => clients::on_unregister(self, command, asked),
            Some(RequestCode::GetConsumerListByGroup) => clients::on_list(self, command, asked),
            Some(RequestCode::CheckClientConfig) => clients::on_check(self, command, asked),
            Some(RequestCode::UpdateAndCreateTopic) => topics::on_create(self, command, asked),
            Some(RequestCode::GetRouteinfoByTopic) => route::on_route(self, command, asked),
            Some(RequestCode::GetBrokerClusterInfo) => route::on_cluster(self, asked),
            Some(RequestCode::GetAllTopicListFromNameserver) => route::on_topics(self, asked),
            Some(RequestCode::GetKvConfig) => route::on_key(command),
            _ => Err(unsupported(command.head.code)),
        }
    }

    // ---- what goes to the shard

    /// Hands a wish over; its reply is answered as `wait` says. Nothing comes back for a one-way request.
    pub(super) fn ask(
        &mut self,
        action: Action,
        resource: Resource<'_>,
        op: Op,
        asked: Asked,
        wait: Wait,
    ) -> Result<(), Denied> {
        let key = authorize(&self.principal, action, resource)?;
        let request = if asked.one_way && !wait.is_ours() { 0 } else { self.last_request + 1 };
        if request != 0 {
            self.last_request = request;
            self.sends += usize::from(matches!(wait, Wait::Send(_)));
            self.commits += usize::from(matches!(wait, Wait::Commit));
            self.pending.insert(request, (asked, wait));
        }
        self.verbs.push(Verb { key, request, vhost: 0, op });
        Ok(())
    }

    /// Lets a client leave its group when the offsets it committed are stored: whoever takes its queues asks for them at once.
    pub(super) fn leave(&mut self, asked: Asked, leaving: clients::Leaving) {
        self.leaving.push((asked, leaving));
        self.let_leave();
    }

    fn let_leave(&mut self) {
        if self.commits == 0 {
            for (asked, leaving) in std::mem::take(&mut self.leaving) {
                clients::on_left(self, asked, &leaving);
            }
        }
    }

    /// What is to be handed over.
    pub(super) fn take_verbs(&mut self) -> Vec<Verb> {
        std::mem::take(&mut self.verbs)
    }

    /// Sends that are not answered yet.
    pub(super) fn sends_waiting(&self) -> usize {
        self.sends
    }

    // ---- what the shard says

    /// Takes events; they are answered by [`Session::answer_events`].
    pub(super) fn on_events(&mut self, events: Vec<Event>) {
        self.backlog.extend(events);
    }

    /// Everything heard is answered.
    pub(super) fn is_idle(&self) -> bool {
        self.backlog.is_empty()
    }

    /// The shard is going down.
    pub(super) fn is_ending(&self) -> bool {
        self.ending
    }

    /// Answers what was heard, until enough waits to be written.
    pub(super) fn answer_events(&mut self) {
        while self.output.buffered() < OUTPUT_MAX {
            match self.backlog.pop_front() {
                Some(Event::Reply { request, result }) => self.on_reply(request, result),
                Some(Event::ShuttingDown) => self.ending = true,
                // The rest is for consumers and publishers of AMQP, which this connection has none of.
                Some(
                    Event::Confirmed { .. }
                    | Event::Returned { .. }
                    | Event::PublishRefused { .. }
                    | Event::Deliveries { .. }
                    | Event::ReaderCancelled { .. },
                ) => {}
                None => return,
            }
        }
    }

    fn on_reply(&mut self, request: u64, result: Result<Reply, Refusal>) {
        let Some((asked, wait)) = self.pending.remove(&request) else { return };
        self.sends -= usize::from(matches!(wait, Wait::Send(_)));
        if matches!(wait, Wait::Commit) {
            self.commits -= 1;
            self.let_leave();
        }
        let outcome = match (wait, result) {
            (Wait::Join(join), result) => {
                clients::on_joined(self, join, result.err());
                Ok(())
            }
            (_, Err(refusal)) => Err(refusal.into()),
            (Wait::Send(sent), Ok(reply)) => send::answer(self, asked, &sent, &reply),
            (Wait::Pull(pulled), Ok(reply)) => pull::answer(self, asked, &pulled, reply),
            (Wait::Offset(wanted), Ok(reply)) => offsets::answer(self, asked, wanted, &reply),
            (Wait::Done | Wait::Commit, Ok(_)) => {
                self.answer(asked, &(), &[]);
                Ok(())
            }
        };
        if let Err(refused) = outcome {
            self.refuse(asked, refused);
        }
    }

    // ---- what clients are told

    /// Success.
    pub(super) fn answer(&mut self, asked: Asked, fields: &(impl Fields + ?Sized), body: &[u8]) {
        self.answer_code(asked, ResponseCode::Success, None, fields, body);
    }

    /// Anything but success.
    pub(super) fn refuse(&mut self, asked: Asked, refused: Refused) {
        self.answer_code(asked, refused.code, Some(refused.remark), &(), &[]);
    }

    /// An answer with all its parts.
    pub(super) fn answer_code(
        &mut self,
        asked: Asked,
        code: ResponseCode,
        remark: Option<String>,
        fields: &(impl Fields + ?Sized),
        body: &[u8],
    ) {
        if asked.one_way {
            return;
        }
        let head = head(asked, code, remark);
        if let Err(error) = encode(&mut self.output.tail, asked.codec, &head, fields, body) {
            // Only a text that came from the client can be that long: say so without it.
            let text = Some(format!("the answer can not be written: {error}"));
            let head = self::head(asked, ResponseCode::SystemError, text);
            let _ = encode(&mut self.output.tail, asked.codec, &head, &(), &[]);
        }
    }

    /// Begins an answer whose body of `body` bytes the caller appends to the output; false: it can not be written.
    pub(super) fn begin_answer(
        &mut self,
        asked: Asked,
        code: ResponseCode,
        remark: Option<String>,
        fields: &(impl Fields + ?Sized),
        body: usize,
    ) -> bool {
        encode_head(&mut self.output.tail, asked.codec, &head(asked, code, remark), fields, body).is_ok()
    }

    /// Tells the client that the members of a group changed.
    pub(super) fn notify(&mut self, group: &str) {
        self.last_opaque = self.last_opaque.wrapping_add(1);
        let code = RequestCode::NotifyConsumerIdsChanged;
        let head = Head::request(code, Language::Java, version::V4_9_8, self.last_opaque).one_way();
        let fields = NotifyConsumerIdsChanged { consumer_group: group };
        let _ = encode(&mut self.output.tail, HeaderCodec::Json, &head, &fields, &[]);
    }
}

/// 4.9.8: a later version would promise what only the 5 line does, POP and heartbeats without content among it.
fn head(asked: Asked, code: ResponseCode, remark: Option<String>) -> Head<'static> {
    Head {
        code: code.code(),
        language: Language::Java,
        version: version::V4_9_8,
        opaque: asked.opaque,
        flag: FLAG_RESPONSE,
        remark: remark.map(Into::into),
    }
}
