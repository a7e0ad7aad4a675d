//! One connection's conversation, without its socket.
//!
//! Owns: requests that wait for the shard, verbs to hand over, answers to write.
//! Promises: every request that wants an answer gets exactly one; answers may overtake each other, as clients expect; a client that
//! does not read its answers is not asked for more work.
//! Does not know: sockets, time.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dassie_rocketmq::code::{FLAG_RESPONSE, version};
use dassie_rocketmq::command::Fields;
use dassie_rocketmq::header::NotifyConsumerIdsChanged;
use dassie_rocketmq::{Command, Head, HeaderCodec, Language, RequestCode, ResponseCode, encode, encode_head};

use tokio::sync::mpsc;

use super::Front;
use super::clients::{self, Joins};
use super::group::{Answer, Member, Notice, Push};
use super::output::Output;
use super::refuse::{Refused, refused, unsupported};
use super::{
    back, credentials, figures, group_configs, key_values, lock, offsets, pull, query, replies, route, send,
    tools, topics, transaction,
};
use crate::broker::api::{Event, Op, Refusal, Reply, Verb};
use crate::broker::message::{Batches, Cache};
use crate::broker::topology::Topology;
use crate::security::{Action, Denied, Principal, Resource, authorize};

/// Requests of one connection that may wait at once.
const PENDING_MAX: usize = 8_192;
/// Answers that wait to be written before more are made. Bytes.
pub(super) const OUTPUT_MAX: usize = 4 * 1024 * 1024;

/// Requests on their way from client to client, per connection and direction.
const ASKING_MAX: usize = 256;

/// What an answer needs to know of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Asked {
    opaque: i32,
    codec: HeaderCodec,
    /// Nobody waits for an answer.
    one_way: bool,
}

impl Asked {
    /// Nobody waits for an answer.
    pub(super) fn is_one_way(self) -> bool {
        self.one_way
    }

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
    Figures(figures::Wanted),
    Figured(tools::Figured),
    /// A broker's permission to be written to, and how many topics it has.
    Permission {
        wipe: bool,
        count: i32,
    },
    /// One message, for a consumer.
    Direct(Box<tools::Direct>),
    Query(Box<query::Query>),
    /// A lock, and the broker name that the client used.
    Lock(String),
    /// An answer without fields.
    Done,
    /// The same; whatever is wrong, Apache says so with one code.
    Step,
    /// One message.
    View,
    /// A group's offset; nobody may wait for an answer, but leaving the group does.
    Commit,
    /// One of several steps: a topic that a heartbeat waits for, or what a list asks for.
    Join(u64),
}

impl Wait {
    /// The shard's reply matters even if the client wants none.
    fn is_ours(&self) -> bool {
        matches!(self, Self::Commit | Self::Join(_))
    }
}

/// Whose answer another client's is.
#[derive(Debug)]
enum Passed {
    /// This request's.
    Answer(Asked),
    /// A part of it: which gathering's, and which client was asked.
    Part(u64, String),
    /// The way of a reply.
    Reply(replies::Reply),
}

/// See the module.
pub(super) struct Session {
    pub(super) front: Arc<Front>,
    pub(super) peer: SocketAddr,
    /// The address that the client came to.
    pub(super) local: IpAddr,
    /// Who the request in hand speaks as.
    pub(super) principal: Principal,
    /// Who the one before spoke as, if that was another.
    other: Option<Principal>,
    /// Until then its client may not have said yet what its groups want. Monotonic.
    pub(super) new_until: Duration,
    pub(super) output: Output,
    pub(super) topology: Arc<Topology>,
    pub(super) member: Member,
    pub(super) joins: Joins,
    pub(super) log: Box<dyn Batches + Send>,
    pub(super) cache: Cache,
    verbs: Vec<Verb>,
    pending: HashMap<u64, (Asked, Wait)>,
    sends: usize,
    /// Queries by key.
    pub(super) queries: usize,
    /// Offsets on their way.
    commits: usize,
    /// Clients that leave once those have arrived.
    leaving: Vec<(Asked, clients::Leaving)>,
    last_request: u64,
    last_opaque: i32,
    /// Requests of others that this client was asked, by their opaque here: who wants the answer, and since when.
    asking: HashMap<i32, (mpsc::Sender<Notice>, u64)>,
    /// Requests of this client that another client is asked, by their number.
    asked: HashMap<u64, Passed>,
    /// Requests that several clients are asked.
    gatherings: HashMap<u64, tools::Gathering>,
    pub(super) replies: replies::Replies,
    backlog: VecDeque<Event>,
    ending: bool,
}

/// A connection is new for so long: twice the time between two heartbeats of Apache's clients.
const NEW: Duration = Duration::from_secs(60);

impl Session {
    pub(super) fn new(
        front: Arc<Front>,
        (peer, local): (SocketAddr, IpAddr),
        topology: Arc<Topology>,
        log: Box<dyn Batches + Send>,
        member: Member,
    ) -> Self {
        // An IPv4 peer of an IPv6 socket is written into records as IPv4.
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let principal = front.realm.anonymous(peer.ip());
        Self {
            new_until: front.clock.monotonic() + NEW,
            front,
            peer,
            local,
            principal,
            other: None,
            output: Output::default(),
            topology,
            member,
            joins: Joins::default(),
            log,
            cache: Cache::default(),
            verbs: Vec::new(),
            pending: HashMap::new(),
            sends: 0,
            queries: 0,
            commits: 0,
            leaving: Vec::new(),
            last_request: 0,
            last_opaque: 0,
            asking: HashMap::new(),
            asked: HashMap::new(),
            gatherings: HashMap::new(),
            replies: replies::Replies::default(),
            backlog: VecDeque::new(),
            ending: false,
        }
    }

    /// `host:port` of the broker, for this client.
    pub(super) fn address(&self) -> String {
        self.front.address(self.local, self.peer.ip())
    }

    /// The peer may do nothing here, and can not become somebody who may.
    pub(super) fn is_stranger(&self) -> bool {
        !self.front.realm.has_signers() && authorize(&self.principal, Action::Read, Resource::Own).is_err()
    }

    /// The request in hand is this user's; `None`: it came without credentials.
    pub(super) fn speak_as(&mut self, name: Option<&str>) {
        let realm = &self.front.realm;
        if self.principal.is(name) {
            return;
        }
        let next = self.other.take().filter(|other| other.is(name)).unwrap_or_else(|| match name {
            Some(name) => realm.signed(name, self.peer.ip()),
            None => realm.anonymous(self.peer.ip()),
        });
        self.other = Some(std::mem::replace(&mut self.principal, next));
    }

    // ---- what clients say

    /// Takes one command.
    pub(super) fn on_command(&mut self, command: &Command<'_>) {
        if command.head.is_response() {
            return self.on_answer(command);
        }
        let asked =
            Asked { opaque: command.head.opaque, codec: command.codec, one_way: command.head.is_one_way() };
        if let Err(refused) = self.dispatch(command, asked) {
            self.refuse(asked, refused);
        }
    }

    fn dispatch(&mut self, command: &Command<'_>, asked: Asked) -> Result<(), Refused> {
        credentials::check(self, command)?;
        authorize(&self.principal, Action::Read, Resource::Own)?;
        if self.pending.len() >= PENDING_MAX {
            let text = "[REJECTREQUEST]system busy: too many requests of this connection wait";
            return Err(refused(ResponseCode::SystemBusy, text));
        }
        match command.head.request_code() {
            Some(RequestCode::SendMessage | RequestCode::SendMessageV2 | RequestCode::SendBatchMessage) => {
                send::on_send(self, command, asked)
            }
            Some(RequestCode::SendReplyMessage | RequestCode::SendReplyMessageV2) => {
                replies::on_reply(self, command, asked)
            }
            Some(RequestCode::PullMessage | RequestCode::LitePullMessage) => {
                pull::on_pull(self, command, asked)
            }
            Some(RequestCode::ConsumerSendMsgBack) => back::on_back(self, command, asked),
            Some(RequestCode::ViewMessageById) => back::on_view(self, command, asked),
            Some(RequestCode::EndTransaction) => transaction::on_end(self, command, asked),
            Some(RequestCode::QueryConsumerOffset) => offsets::on_query(self, command, asked),
            Some(RequestCode::UpdateConsumerOffset) => offsets::on_update(self, command, asked),
            Some(RequestCode::SearchOffsetByTimestamp) => offsets::on_search(self, command, asked),
            Some(RequestCode::GetMaxOffset) => offsets::on_max(self, command, asked),
            Some(RequestCode::GetMinOffset) => offsets::on_min(self, command, asked),
            Some(RequestCode::GetEarliestMsgStoretime) => offsets::on_earliest(self, command, asked),
            Some(RequestCode::QueryMessage) => query::on_query(self, command, asked),
            Some(RequestCode::LockBatchMq) => lock::on_lock(self, command, asked),
            Some(RequestCode::UnlockBatchMq) => lock::on_unlock(self, command, asked),
            Some(RequestCode::GetConsumerConnectionList) => clients::on_consumers(self, command, asked),
            Some(RequestCode::GetProducerConnectionList) => clients::on_producers(self, command, asked),
            Some(RequestCode::GetConsumerRunningInfo) => clients::on_running_info(self, command, asked),
            Some(RequestCode::HeartBeat) => clients::on_heartbeat(self, command, asked),
            Some(RequestCode::UnregisterClient) => clients::on_unregister(self, command, asked),
            Some(RequestCode::GetConsumerListByGroup) => clients::on_list(self, command, asked),
            Some(RequestCode::CheckClientConfig) => clients::on_check(self, command, asked),
            Some(RequestCode::UpdateAndCreateTopic) => topics::on_create(self, command, asked),
            Some(RequestCode::DeleteTopicInBroker | RequestCode::DeleteTopicInNamesrv) => {
                topics::on_delete(self, command, asked)
            }
            Some(RequestCode::UpdateAndCreateTopicList) => topics::on_create_all(self, command, asked),
            Some(RequestCode::GetAllTopicConfig) => topics::on_all(self, asked),
            Some(RequestCode::GetTopicConfig) => topics::on_one(self, command, asked),
            Some(RequestCode::GetBrokerRuntimeInfo) => figures::on_runtime(self, asked),
            Some(RequestCode::GetBrokerConfig) => figures::on_config(self, asked),
            Some(RequestCode::GetTopicStatsInfo) => figures::on_topic(self, command, asked),
            Some(RequestCode::GetConsumeStats) => figures::on_group(self, command, asked),
            Some(RequestCode::QueryTopicConsumeByWho) => figures::on_groups(self, command, asked),
            Some(RequestCode::InvokeBrokerToResetOffset) => figures::on_reset(self, command, asked),
            Some(RequestCode::UpdateAndCreateSubscriptiongroup) => {
                group_configs::on_put(self, command, asked)
            }
            Some(RequestCode::UpdateAndCreateSubscriptiongroupList) => {
                group_configs::on_put_all(self, command, asked)
            }
            Some(RequestCode::GetAllSubscriptiongroupConfig) => group_configs::on_all(self, asked),
            Some(RequestCode::GetSubscriptiongroupConfig) => group_configs::on_one(self, command, asked),
            Some(RequestCode::DeleteSubscriptiongroup) => group_configs::on_delete(self, command, asked),
            Some(RequestCode::PutKvConfig) => key_values::on_put(self, command, asked),
            Some(RequestCode::DeleteKvConfig) => key_values::on_delete(self, command, asked),
            Some(RequestCode::GetKvlistByNamespace) => key_values::on_list(self, command, asked),
            Some(RequestCode::GetTopicsByCluster) => route::on_topics_of(self, command, asked),
            Some(RequestCode::GetSystemTopicListFromNs | RequestCode::GetSystemTopicListFromBroker) => {
                route::on_system_topics(self, asked)
            }
            Some(RequestCode::GetRouteinfoByTopic) => route::on_route(self, command, asked),
            Some(RequestCode::GetBrokerClusterInfo) => route::on_cluster(self, asked),
            Some(RequestCode::GetAllTopicListFromNameserver) => route::on_topics(self, asked),
            Some(RequestCode::GetKvConfig) => key_values::on_get(self, command, asked),
            Some(RequestCode::WipeWritePermOfBroker) => tools::on_permission(self, command, asked, true),
            Some(RequestCode::AddWritePermOfBroker) => tools::on_permission(self, command, asked, false),
            Some(RequestCode::QueryConsumeTimeSpan) => tools::on_span(self, command, asked),
            Some(RequestCode::QueryTopicsByConsumer) => tools::on_topics(self, command, asked),
            Some(RequestCode::QuerySubscriptionByConsumer) => tools::on_subscription(self, command, asked),
            Some(RequestCode::CloneGroupOffset) => tools::on_clone(self, command, asked),
            Some(RequestCode::ConsumeMessageDirectly) => tools::on_direct(self, command, asked),
            Some(RequestCode::InvokeBrokerToGetConsumerStatus) => tools::on_status(self, command, asked),
            Some(RequestCode::GetAllProducerInfo) => tools::on_producers(self, asked),
            Some(RequestCode::ViewBrokerStatsData) => tools::on_stats(command),
            Some(RequestCode::GetNamesrvConfig) => tools::on_name_server_config(self, asked),
            Some(
                RequestCode::GetUnitTopicList
                | RequestCode::GetHasUnitSubTopicList
                | RequestCode::GetHasUnitSubUnunitTopicList,
            ) => tools::on_unit_topics(self, asked),
            _ => Err(unsupported(command.head.code)),
        }
    }

    /// Nothing happened for a while: gives memory back.
    pub(super) fn rest(&mut self) {
        self.cache = Cache::default();
        self.pending.shrink_to_fit();
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
        let request = if asked.one_way && !wait.is_ours() { 0 } else { self.next_request() };
        if request != 0 {
            self.last_request = request;
            self.sends += usize::from(matches!(wait, Wait::Send(_)));
            self.commits += usize::from(matches!(wait, Wait::Commit));
            self.pending.insert(request, (asked, wait));
        }
        self.verbs.push(Verb { key, request, vhost: 0, op, number: 0 });
        Ok(())
    }

    /// Hands a wish over whose outcome shows in the next one's.
    pub(super) fn tell(&mut self, action: Action, resource: Resource<'_>, op: Op) -> Result<(), Denied> {
        let key = authorize(&self.principal, action, resource)?;
        self.verbs.push(Verb { key, request: 0, vhost: 0, op, number: 0 });
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
                Some(Event::CheckBack(delivery)) => transaction::ask(self, &delivery),
                Some(Event::ShuttingDown) => self.ending = true,
                Some(Event::Confirmed { first, last, accepted, .. }) => {
                    replies::on_confirmed(self, &(first..=last), accepted);
                }
                Some(Event::Returned { publish, .. }) => replies::on_returned(self, publish.confirm),
                Some(Event::PublishRefused { refusal, .. }) => replies::on_refused(self, &refusal),
                Some(Event::Deliveries { deliveries, .. }) => replies::on_deliveries(self, &deliveries),
                // It consumes from no queue.
                Some(Event::ReaderCancelled { .. }) => {}
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
            (Wait::Step | Wait::View | Wait::Direct(_), Err(refusal))
                if !matches!(refusal, Refusal::Busy(_)) =>
            {
                Err(refused(ResponseCode::SystemError, refusal.to_string()))
            }
            (Wait::Offset(wanted), Err(Refusal::NotFound { .. } | Refusal::Invalid(_))) => {
                offsets::answer_missing(self, asked, wanted)
            }
            (wait, Err(refusal)) => {
                self.queries -= usize::from(matches!(wait, Wait::Query(_)));
                Err(refusal.into())
            }
            (Wait::View, Ok(reply)) => back::answer_view(self, asked, &reply),
            (Wait::Send(sent), Ok(reply)) => send::answer(self, asked, &sent, &reply),
            (Wait::Pull(pulled), Ok(reply)) => pull::answer(self, asked, &pulled, reply),
            (Wait::Query(query), Ok(reply)) => query::on_reply(self, asked, query, reply),
            (Wait::Figures(wanted), Ok(reply)) => figures::answer(self, asked, wanted, reply),
            (Wait::Figured(figured), Ok(reply)) => tools::answer(self, asked, figured, reply),
            (Wait::Direct(direct), Ok(reply)) => tools::answer_direct(self, asked, &direct, &reply),
            (Wait::Permission { wipe, count }, Ok(_)) => {
                tools::answer_permission(self, asked, wipe, count);
                Ok(())
            }
            (Wait::Lock(broker), Ok(reply)) => lock::answer(self, asked, &broker, reply),
            (Wait::Offset(wanted), Ok(reply)) => offsets::answer(self, asked, wanted, &reply),
            (Wait::Done | Wait::Step | Wait::Commit, Ok(_)) => {
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

    /// Takes what the node's other connections have for this one's client.
    pub(super) fn on_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Changed(group) => {
                let fields = NotifyConsumerIdsChanged { consumer_group: &group };
                self.request(RequestCode::NotifyConsumerIdsChanged, true, &fields, &[]);
            }
            Notice::Push(push) => self.push(&push),
            Notice::Answer(answer) => {
                self.on_passed(answer);
            }
        }
    }

    /// Another client answered what this one wanted to know.
    fn on_passed(&mut self, answer: Answer) {
        match self.asked.remove(&answer.number) {
            Some(Passed::Answer(asked)) => {
                let code = ResponseCode::from_code(answer.code).unwrap_or(ResponseCode::SystemError);
                self.answer_code(asked, code, answer.remark, &(), &answer.body);
            }
            Some(Passed::Part(number, client)) => {
                let Some(gathering) = self.gatherings.get_mut(&number) else { return };
                if let Some((asked, body)) = gathering.take(client, &answer) {
                    self.gatherings.remove(&number);
                    self.answer(asked, &(), &body);
                }
            }
            Some(Passed::Reply(reply)) => replies::on_told(self, &reply, &answer),
            None => {}
        }
    }

    fn push(&mut self, push: &Push) {
        let fields: Vec<(&str, &str)> = push.fields.iter().map(|(name, value)| (*name, &**value)).collect();
        let opaque = self.request(push.code, push.back.is_none(), &&fields[..], &push.body);
        if let Some(back) = &push.back {
            if self.asking.len() >= ASKING_MAX {
                // Who asked gave up long ago.
                self.asking.clear();
            }
            self.asking.insert(opaque, back.clone());
        }
    }

    /// Sends the client a request of ours.
    pub(super) fn request(
        &mut self,
        code: RequestCode,
        one_way: bool,
        fields: &impl Fields,
        body: &[u8],
    ) -> i32 {
        self.last_opaque = self.last_opaque.wrapping_add(1);
        let mut head = Head::request(code, Language::Java, version::V4_9_8, self.last_opaque);
        if one_way {
            head = head.one_way();
        }
        let _ = encode(&mut self.output.tail, HeaderCodec::Json, &head, fields, body);
        self.last_opaque
    }

    /// The client answers what it was asked for another.
    fn on_answer(&mut self, command: &Command<'_>) {
        let Some((back, number)) = self.asking.remove(&command.head.opaque) else { return };
        let answer = Answer {
            number,
            code: command.head.code,
            remark: command.head.remark.as_deref().map(str::to_owned),
            body: Bytes::copy_from_slice(command.body),
        };
        // No room: it is told so much that its own client waits in vain; that gives up by itself.
        let _ = back.try_send(Notice::Answer(answer));
    }

    /// Remembers a request that is answered by [`Notice::Answer`]; its number.
    pub(super) fn will_answer(&mut self, asked: Asked) -> (mpsc::Sender<Notice>, u64) {
        self.will_pass(Passed::Answer(asked))
    }

    /// Remembers a request that several clients are asked; its number.
    pub(super) fn gather(&mut self, gathering: tools::Gathering) -> u64 {
        if self.gatherings.len() >= ASKING_MAX {
            self.gatherings.clear();
        }
        self.last_request = self.next_request();
        self.gatherings.insert(self.last_request, gathering);
        self.last_request
    }

    /// One of them is asked.
    pub(super) fn will_gather(&mut self, number: u64, client: String) -> (mpsc::Sender<Notice>, u64) {
        self.will_pass(Passed::Part(number, client))
    }

    /// Remembers a reply that another client is told.
    pub(super) fn will_reply(&mut self, reply: replies::Reply) -> (mpsc::Sender<Notice>, u64) {
        self.will_pass(Passed::Reply(reply))
    }

    fn will_pass(&mut self, passed: Passed) -> (mpsc::Sender<Notice>, u64) {
        if self.asked.len() >= ASKING_MAX {
            self.asked.clear();
        }
        self.last_request = self.next_request();
        self.asked.insert(self.last_request, passed);
        (self.member.notices.clone(), self.last_request)
    }

    /// Comes round after 2^32, when no request of then can be open: above that would stand a channel.
    fn next_request(&self) -> u64 {
        self.last_request % u64::from(u32::MAX) + 1
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

#[cfg(test)]
mod tests;
