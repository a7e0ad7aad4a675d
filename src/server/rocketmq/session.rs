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
    back, figures, group_configs, key_values, lock, offsets, pull, query, route, send, topics, transaction,
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
    /// The address that the client came to.
    pub(super) local: IpAddr,
    pub(super) principal: Principal,
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
    asked: HashMap<u64, Asked>,
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
            backlog: VecDeque::new(),
            ending: false,
        }
    }

    /// `host:port` of the broker, for this client.
    pub(super) fn address(&self) -> String {
        self.front.address(self.local, self.peer.ip())
    }

    /// The peer may do nothing here.
    pub(super) fn is_stranger(&self) -> bool {
        authorize(&self.principal, Action::Read, Resource::Own).is_err()
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
        let request = if asked.one_way && !wait.is_ours() { 0 } else { self.last_request + 1 };
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
            (Wait::Step | Wait::View, Err(refusal)) if !matches!(refusal, Refusal::Busy(_)) => {
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
                let Some(asked) = self.asked.remove(&answer.number) else { return };
                let code = ResponseCode::from_code(answer.code).unwrap_or(ResponseCode::SystemError);
                self.answer_code(asked, code, answer.remark, &(), &answer.body);
            }
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
        if self.asked.len() >= ASKING_MAX {
            self.asked.clear();
        }
        self.last_request += 1;
        self.asked.insert(self.last_request, asked);
        (self.member.notices.clone(), self.last_request)
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
mod tests {
    use crate::security::{Realm, users::Users};
    use std::sync::Arc;

    use crate::broker::api::Destination;
    use dassie_rocketmq::body::{ConsumerList, from_json};
    use dassie_rocketmq::frame::MAX_FRAME;
    use dassie_rocketmq::header::{SendMessage, ShortNames};
    use dassie_rocketmq::{Split, split};

    use super::super::Settings;
    use super::super::group::Groups;
    use super::*;
    use crate::clock::SystemClock;

    struct NoLog;

    impl Batches for NoLog {
        fn batch(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
            Err(std::io::Error::other(format!("nothing at {position}")))
        }

        fn holding(&self, position: u64) -> std::io::Result<dassie_storage::Batch> {
            self.batch(position)
        }

        fn is_at_hand(&self, _: u64) -> bool {
            true
        }
    }

    /// A client's requests, and what came back.
    struct Test {
        session: Session,
        notices: mpsc::Receiver<Notice>,
    }

    /// An answer: opaque, code, remark.
    type Heard = (i32, i32, Option<String>);

    impl Test {
        fn new(peer: &str) -> Self {
            let settings = Settings {
                advertised_host: Some("127.0.0.1".into()),
                advertised_port: 10911,
                broker_name: "b".into(),
                cluster_name: "c".into(),
                auto_create_topics: true,
                default_topic_queues: 8,
                delay_levels: 18,
            };
            let front = Arc::new(Front {
                registry: crate::server::registry::Registry::new(Arc::new(SystemClock::new())),
                settings,
                store_host: "127.0.0.1:10911".parse().unwrap(),
                groups: Arc::new(Groups::default()),
                realm: Realm::new(Users::only_guest()),
                clock: Arc::new(SystemClock::new()),
                misled: std::sync::Once::new(),
                started_ms: 0,
                alarms: crate::alarms::Alarms::new(),
                instance: 1,
                keys: 0.into(),
            });
            let (notices_in, notices) = mpsc::channel(8);
            let member = Member::new(1, notices_in, peer.parse().unwrap());
            let topology = Arc::new(Topology::new());
            let peers = (peer.parse().unwrap(), "127.0.0.1".parse().unwrap());
            let session = Session::new(front, peers, topology, Box::new(NoLog), member);
            Self { session, notices }
        }

        /// Returns the verbs that the request became.
        fn says(&mut self, head: &Head<'_>, fields: &impl Fields, body: &[u8]) -> Vec<Verb> {
            let mut bytes = Vec::new();
            encode(&mut bytes, HeaderCodec::Json, head, fields, body).unwrap();
            let Ok(Split::Frame { frame, .. }) = split(&bytes, MAX_FRAME) else { panic!("no frame") };
            self.session.on_command(&Command::decode(&frame).unwrap());
            self.session.take_verbs()
        }

        fn asks(&mut self, code: i32, opaque: i32, fields: &[(&str, &str)], body: &[u8]) -> Vec<Verb> {
            let mut head = Head::request(RequestCode::HeartBeat, Language::Java, version::V4_9_8, opaque);
            head.code = code;
            self.says(&head, &fields, body)
        }

        fn replies(&mut self, request: u64, result: Result<Reply, Refusal>) {
            self.session.on_events(vec![Event::Reply { request, result }]);
            self.session.answer_events();
        }

        fn hears(&mut self) -> Vec<Heard> {
            let bytes = std::mem::take(&mut self.session.output.tail);
            let (mut rest, mut heard) = (&bytes[..], Vec::new());
            while let Ok(Split::Frame { frame, consumed }) = split(rest, MAX_FRAME) {
                let command = Command::decode(&frame).unwrap();
                heard.push((command.head.opaque, command.head.code, command.head.remark.map(Into::into)));
                rest = &rest[consumed..];
            }
            heard
        }
    }

    fn send(topic: &str) -> ShortNames<'_> {
        let header =
            SendMessage { producer_group: "P", topic, default_topic_queue_nums: 4, ..SendMessage::default() };
        ShortNames(header)
    }

    fn request(code: RequestCode, opaque: i32) -> Head<'static> {
        Head::request(code, Language::Java, version::V4_9_8, opaque)
    }

    const HEARTBEAT: &[u8] =
        br#"{"clientID":"a@1","consumerDataSet":[{"groupName":"G","consumeType":"CONSUME_PASSIVELY",
        "messageModel":"CLUSTERING","consumeFromWhere":"CONSUME_FROM_LAST_OFFSET",
        "subscriptionDataSet":[{"topic":"T","subString":"*","subVersion":1}]}]}"#;

    #[test]
    fn every_request_has_its_answer_in_whatever_order_the_shard_replies() {
        let mut test = Test::new("127.0.0.1:5");
        let first = test.says(&request(RequestCode::SendMessageV2, 11), &send("T"), b"one");
        let second = test.says(&request(RequestCode::SendMessageV2, 12), &send("T"), b"two");
        assert!(matches!(&first[0].op, Op::CreateTopic { write_queues: 4, .. }));
        assert_eq!(test.session.sends_waiting(), 2);
        let sent =
            |offset| Ok(Reply::Sent { queue_id: 0, offsets: vec![offset], positions: vec![100 + offset] });
        test.replies(second[1].request, sent(1));
        test.replies(first[1].request, Err(Refusal::Busy("later".into())));
        assert_eq!(test.hears(), [(12, 0, None), (11, 2, Some("later".to_owned()))]);
        assert_eq!(test.session.sends_waiting(), 0);
    }

    #[test]
    fn a_one_way_request_gets_no_answer_even_when_it_is_refused() {
        let mut test = Test::new("127.0.0.1:5");
        let verbs = test.says(&request(RequestCode::SendMessageV2, 1).one_way(), &send("T"), b"x");
        assert_eq!(verbs.iter().map(|verb| verb.request).collect::<Vec<_>>(), [0, 0]);
        let refused = test.says(&request(RequestCode::SendMessageV2, 2).one_way(), &send("T"), b"");
        assert!(refused.is_empty() && test.hears().is_empty());
    }

    #[test]
    fn a_heartbeat_is_answered_when_the_retry_topic_is_there_and_its_group_is_known_before() {
        let mut test = Test::new("127.0.0.1:5");
        let verbs = test.asks(34, 1, &[], HEARTBEAT);
        let Op::CreateTopic { topic, write_queues: 1, .. } = &verbs[0].op else {
            panic!("{:?}", verbs[0].op)
        };
        assert_eq!(&**topic, "%RETRY%G");
        assert!(matches!(test.notices.try_recv(), Ok(Notice::Changed(group)) if &*group == "G"));
        test.asks(38, 2, &[("consumerGroup", "G")], &[]);
        let body = br#"{"consumerIdList":["a@1"]}"#;
        assert!(test.session.output.tail.ends_with(body) && from_json::<ConsumerList>(body).is_ok());
        assert_eq!(test.hears(), [(2, 0, None)]);
        test.replies(verbs[0].request, Ok(Reply::Ok));
        assert_eq!(test.hears(), [(1, 0, None)]);
    }

    #[test]
    fn a_client_leaves_its_group_after_the_offsets_it_committed_are_stored() {
        let mut test = Test::new("127.0.0.1:5");
        test.asks(34, 1, &[], HEARTBEAT);
        let fields = [("consumerGroup", "G"), ("topic", "T"), ("queueId", "0"), ("commitOffset", "7")];
        let commit = test.says(&request(RequestCode::UpdateConsumerOffset, 2).one_way(), &&fields[..], &[]);
        test.asks(35, 3, &[("clientID", "a@1"), ("consumerGroup", "G")], &[]);
        assert_eq!((test.hears(), test.session.front.groups.clients("G").len()), (vec![], 1));
        test.replies(commit[0].request, Ok(Reply::Ok));
        assert_eq!((test.hears(), test.session.front.groups.clients("G").len()), (vec![(3, 0, None)], 0));
    }

    #[test]
    fn a_group_without_a_subscription_can_not_pull() {
        let mut test = Test::new("127.0.0.1:5");
        test.asks(34, 1, &[], HEARTBEAT);
        let pull = |topic, flags, version| {
            [
                ("consumerGroup", "G"),
                ("topic", topic),
                ("queueId", "0"),
                ("queueOffset", "0"),
                ("maxMsgNums", "32"),
                ("sysFlag", flags),
                ("commitOffset", "5"),
                ("suspendTimeoutMillis", "15000"),
                ("subVersion", version),
            ]
        };
        let verbs = test.asks(11, 2, &pull("T", "3", "1"), &[]);
        assert!(matches!(verbs[0].op, Op::CommitOffset { offset: 5, .. }));
        assert!(matches!(&verbs[1].op, Op::Fetch(fetch) if fetch.wait_ms == 15_000 && fetch.tags.is_empty()));
        assert!(test.asks(11, 3, &pull("U", "0", "1"), &[]).is_empty());
        assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [24]);
        // Of a group without members the client of a new connection may just not have told yet: it is not made to wait.
        let other = |group| {
            let mut fields = pull("T", "0", "1");
            fields[0].1 = group;
            fields
        };
        assert!(
            matches!(&test.asks(11, 5, &other("H"), &[])[0].op, Op::Fetch(fetch) if fetch.tags.is_empty())
        );
        test.session.new_until = Duration::ZERO;
        assert!(test.asks(11, 6, &other("H"), &[]).is_empty());
        assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [24]);
        // A rebalance renews the version before a heartbeat tells: such a pull is no reason to wait.
        assert!(
            matches!(&test.asks(11, 4, &pull("T", "0", "2"), &[])[0].op, Op::Fetch(fetch) if fetch.tags.is_empty())
        );
    }

    #[test]
    fn a_retry_that_is_one_too_many_or_of_an_ordered_group_goes_to_the_dead_letters() {
        let mut test = Test::new("127.0.0.1:5");
        test.asks(34, 1, &[], HEARTBEAT);
        let mut goes = |topic, times, most| {
            let header = SendMessage { reconsume_times: times, max_reconsume_times: most, ..send(topic).0 };
            let verbs = test.says(&request(RequestCode::SendMessageV2, 2), &ShortNames(header), b"x");
            let Some(Op::Send(send)) = verbs.last().map(|verb| &verb.op) else { panic!("no send") };
            send.topic.to_string()
        };
        for (topic, times, most, expected) in [
            ("%RETRY%G", None, None, "%RETRY%G"),
            ("%RETRY%G", Some(16), None, "%RETRY%G"),
            ("%RETRY%G", Some(17), None, "%DLQ%G"),
            ("%RETRY%G", Some(3), Some(3), "%RETRY%G"),
            ("%RETRY%G", Some(4), Some(3), "%DLQ%G"),
            ("T", Some(99), None, "T"),
        ] {
            assert_eq!(goes(topic, times, most), expected, "{topic} {times:?} {most:?}");
        }
        let locks = br#"{"consumerGroup":"G","clientId":"a@1","mqSet":[]}"#;
        test.asks(41, 3, &[], locks);
        let header = SendMessage { reconsume_times: Some(1), ..send("%RETRY%G").0 };
        let verbs = test.says(&request(RequestCode::SendMessageV2, 4), &ShortNames(header), b"x");
        assert!(matches!(&verbs.last().unwrap().op, Op::Send(send) if &*send.topic == "%DLQ%G"));
    }

    #[test]
    fn a_topic_that_stands_for_an_exchange_is_made_and_bound_by_its_first_send() {
        let mut test = Test::new("127.0.0.1:5");
        let verbs = test.says(&request(RequestCode::SendMessageV2, 1), &send("AMQP-X-amq|2Etopic"), b"x");
        let ops: Vec<_> = verbs.iter().map(|verb| &verb.op).collect();
        let [Op::CreateTopic { write_queues: 1, .. }, Op::Bind(binding), Op::Send(_)] = ops[..] else {
            panic!("{ops:?}")
        };
        assert_eq!(
            (&*binding.source, &binding.destination, &*binding.key),
            ("amq.rmq.AMQP-X-amq|2Etopic", &Destination::Exchange("amq.topic".into()), "#")
        );
        assert!(test.says(&request(RequestCode::SendMessageV2, 2), &send("AMQP-X-none"), b"x").is_empty());
        assert_eq!(test.hears().iter().map(|(_, code, _)| *code).collect::<Vec<_>>(), [17]);
    }

    #[test]
    fn a_stranger_is_refused_whatever_it_asks() {
        let mut test = Test::new("192.0.2.1:5");
        for code in [10, 34, 105, 106, 206, 9_999] {
            assert!(test.asks(code, code, &[], HEARTBEAT).is_empty());
        }
        assert!(test.hears().iter().all(|(_, code, _)| *code == 16));
    }

    #[test]
    fn a_client_that_does_not_read_is_not_given_more_answers() {
        let mut test = Test::new("127.0.0.1:5");
        let verbs = test.says(&request(RequestCode::SendMessageV2, 1), &send("T"), b"x");
        test.session.output.tail = vec![0; OUTPUT_MAX];
        let reply = Reply::Sent { queue_id: 0, offsets: vec![0], positions: vec![0] };
        test.replies(verbs[1].request, Ok(reply));
        assert!(!test.session.is_idle() && test.session.output.tail.len() == OUTPUT_MAX);
        test.session.output.tail.clear();
        test.session.answer_events();
        assert_eq!((test.session.is_idle(), test.hears().len()), (true, 1));
    }
}
