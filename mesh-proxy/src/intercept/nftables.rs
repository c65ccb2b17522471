//! The rules as nf_tables keeps them: a table of family `inet`, so that one rule serves IPv4 and IPv6, with a NAT chain
//! for connections from outside and one for those of the namespace's own processes.

use ipnet::IpNet;
use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{
    Bitwise, ChainAttribute, ChainMessage, Cmp, DataAttribute, ExpressionAttribute, Expressions, Hook, Immediate,
    InetHookNumber, ListAttribute, Meta, MetaKey, NfTablesMessage, Operator, Payload, Register, RuleAttribute,
    RuleMessage, TableAttribute, TableMessage, Verdict, VerdictAttribute,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily};

use super::InterceptError;
use super::netlink::{Conversation, Part};
use super::rules::{Action, Chain, Condition, Rule, Ruleset};

const TABLE: &str = "mesh";
/// `NFNL_SUBSYS_NFTABLES`: whom a batch is for.
const SUBSYSTEM: u16 = 10;
/// Where destination NAT is done (`dstnat`; in the output hook, `-100` too).
const PRIORITY: i32 = -100;
/// `NF_ACCEPT`
const ACCEPT: u32 = 1;

/// `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// `NFTA_REDIR_REG_PROTO_MIN`
const REDIRECT_PORT: u16 = 1;
const TCP: u8 = 6;

type Expression = ListAttribute<ExpressionAttribute>;

/// Replaces the table by these rules, in one transaction.
pub(super) fn replace(ruleset: &Ruleset) -> Result<(), InterceptError> {
    let mut batch = Batch::default();
    // Deleting needs a table that is there.
    batch.add(NfTablesMessage::NewTable(table()), NLM_F_CREATE);
    batch.add(NfTablesMessage::DeleteTable(table()), 0);
    batch.add(NfTablesMessage::NewTable(table()), NLM_F_CREATE);
    for chain in Chain::ALL {
        batch.add(NfTablesMessage::NewChain(chain_message(chain)), NLM_F_CREATE);
    }
    for rule in &ruleset.rules {
        batch.add(
            NfTablesMessage::NewRule(rule_message(rule)),
            NLM_F_CREATE | NLM_F_APPEND,
        );
    }
    batch.commit("programming table inet mesh")
}

/// Removes the table, if there is one.
pub(super) fn remove() -> Result<(), InterceptError> {
    let mut batch = Batch::default();
    batch.add(NfTablesMessage::NewTable(table()), NLM_F_CREATE);
    batch.add(NfTablesMessage::DeleteTable(table()), 0);
    batch.commit("removing table inet mesh")
}

/// Reads back what is in force, and compares.
pub(super) fn check(ruleset: &Ruleset) -> Result<(), InterceptError> {
    let what = "reading table inet mesh";
    let differs = |text: String| Err(InterceptError::Differs(text));
    let chains = dump(what, NfTablesMessage::GetChain(ChainMessage { attributes: vec![] }))?;
    let rules = dump(
        what,
        NfTablesMessage::GetRule(RuleMessage {
            attributes: vec![RuleAttribute::Table(TABLE.to_owned())],
        }),
    )?;
    for chain in Chain::ALL {
        let wanted = chain_message(chain).attributes;
        let found = chains.iter().any(|message| match &message.inner {
            NetfilterMessageInner::NfTables(NfTablesMessage::NewChain(found)) => {
                wanted.iter().all(|attribute| found.attributes.contains(attribute))
            }
            _ => false,
        });
        if !found {
            return differs(format!("chain {} is missing", chain.name()));
        }
        let wanted: Vec<&Rule> = ruleset.rules.iter().filter(|rule| rule.chain == chain).collect();
        let found: Vec<&Vec<Expression>> = rules.iter().filter_map(|rule| expressions_of(rule, chain)).collect();
        if wanted.len() != found.len() {
            let (wanted, found) = (wanted.len(), found.len());
            return differs(format!("chain {} has {found} rules instead of {wanted}", chain.name()));
        }
        for (rule, found) in wanted.iter().zip(found) {
            if !same(&expressions(rule), found) {
                return differs(format!("chain {} has another rule in place of `{rule}`", chain.name()));
            }
        }
    }
    Ok(())
}

fn dump(what: &'static str, request: NfTablesMessage) -> Result<Vec<NetfilterMessage>, InterceptError> {
    let conversation = Conversation::open(Part::Netfilter, what)?;
    let mut bytes = Vec::new();
    serialize(&mut bytes, request, NLM_F_DUMP, 1);
    conversation.send(&bytes)?;
    conversation.dump()
}

fn expressions_of(message: &NetfilterMessage, chain: Chain) -> Option<&Vec<Expression>> {
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewRule(rule)) = &message.inner else {
        return None;
    };
    let is = |attribute: RuleAttribute| rule.attributes.contains(&attribute);
    if message.header.family != NetfilterProtoFamily::Inet
        || !is(RuleAttribute::Table(TABLE.to_owned()))
        || !is(RuleAttribute::Chain(chain.name().to_owned()))
    {
        return None;
    }
    rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Expressions(expressions) => Some(expressions),
        _ => None,
    })
}

/// Whether the kernel has these expressions; it may say more of each than it was told.
fn same(wanted: &[Expression], found: &[Expression]) -> bool {
    wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| match (wanted, found) {
            (ListAttribute::Element(wanted), ListAttribute::Element(found)) => {
                wanted.len() == found.len() && wanted.iter().zip(found).all(|(wanted, found)| covers(wanted, found))
            }
            _ => false,
        })
}

fn covers(wanted: &ExpressionAttribute, found: &ExpressionAttribute) -> bool {
    fn all<T: PartialEq>(wanted: &[T], found: &[T]) -> bool {
        wanted.iter().all(|attribute| found.contains(attribute))
    }
    use ExpressionAttribute::Data;
    match (wanted, found) {
        (Data(Expressions::Meta(wanted)), Data(Expressions::Meta(found))) => all(wanted, found),
        (Data(Expressions::Cmp(wanted)), Data(Expressions::Cmp(found))) => all(wanted, found),
        (Data(Expressions::Payload(wanted)), Data(Expressions::Payload(found))) => all(wanted, found),
        (Data(Expressions::Bitwise(wanted)), Data(Expressions::Bitwise(found))) => all(wanted, found),
        (Data(Expressions::Immediate(wanted)), Data(Expressions::Immediate(found))) => all(wanted, found),
        (Data(Expressions::Other { attributes: wanted, .. }), Data(Expressions::Other { attributes: found, .. })) => {
            all(wanted, found)
        }
        (wanted, found) => wanted == found,
    }
}

/// Messages that take effect together or not at all.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    messages: Vec<(NfTablesMessage, u16)>,
}

impl Batch {
    fn add(&mut self, message: NfTablesMessage, flags: u16) {
        self.messages.push((message, flags));
    }

    fn commit(mut self, what: &'static str) -> Result<(), InterceptError> {
        let conversation = Conversation::open(Part::Netfilter, what)?;
        serialize(&mut self.bytes, ControlMessage::BatchBegin, 0, 0);
        let count = self.messages.len();
        let mut number = 0;
        for (message, flags) in self.messages {
            number += 1;
            // What is refused is always said; of what is accepted, the last will do.
            let acknowledge = if number as usize == count { NLM_F_ACK } else { 0 };
            serialize(&mut self.bytes, message, flags | acknowledge, number);
        }
        serialize(&mut self.bytes, ControlMessage::BatchEnd, 0, number + 1);
        conversation.send(&self.bytes)?;
        conversation.acknowledged(number)
    }
}

fn serialize(bytes: &mut Vec<u8>, message: impl Into<NetfilterMessageInner>, flags: u16, number: u32) {
    let inner = message.into();
    let header = match inner {
        NetfilterMessageInner::None(_) => NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, SUBSYSTEM),
        _ => NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0),
    };
    let mut envelope = NetlinkHeader::default();
    envelope.flags = NLM_F_REQUEST | flags;
    envelope.sequence_number = number;
    let payload = NetlinkPayload::from(NetfilterMessage::new(header, inner));
    let mut message = NetlinkMessage::new(envelope, payload);
    message.finalize();
    let start = bytes.len();
    bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut bytes[start..]);
}

fn table() -> TableMessage {
    TableMessage {
        attributes: vec![TableAttribute::Name(TABLE.to_owned())],
    }
}

fn chain_message(chain: Chain) -> ChainMessage {
    let hook = match chain {
        Chain::Prerouting => InetHookNumber::PreRouting,
        Chain::Output => InetHookNumber::LocalOut,
    };
    ChainMessage {
        attributes: vec![
            ChainAttribute::Table(TABLE.to_owned()),
            ChainAttribute::Name(chain.name().to_owned()),
            ChainAttribute::Hook(vec![
                Hook::Number(hook.into()),
                Hook::Priority(PRIORITY.cast_unsigned()),
            ]),
            ChainAttribute::Policy(ACCEPT),
            ChainAttribute::Type("nat".to_owned()),
        ],
    }
}

fn rule_message(rule: &Rule) -> RuleMessage {
    RuleMessage {
        attributes: vec![
            RuleAttribute::Table(TABLE.to_owned()),
            RuleAttribute::Chain(rule.chain.name().to_owned()),
            RuleAttribute::Expressions(expressions(rule)),
        ],
    }
}

fn expressions(rule: &Rule) -> Vec<Expression> {
    let mut expressions = Vec::new();
    for condition in &rule.when {
        match condition {
            Condition::Tcp => meta(&mut expressions, MetaKey::L4Proto, Operator::Equal, vec![TCP]),
            Condition::ToPort(port) => {
                let place = (TRANSPORT_HEADER, 2, 2);
                payload(
                    &mut expressions,
                    place,
                    None,
                    Operator::Equal,
                    port.to_be_bytes().into(),
                );
            }
            Condition::From(range) => address(&mut expressions, *range, Side::Source, Operator::Equal),
            Condition::To(range) => address(&mut expressions, *range, Side::Destination, Operator::Equal),
            Condition::NotTo(range) => address(&mut expressions, *range, Side::Destination, Operator::NotEqual),
            Condition::FromInterface(name) => {
                meta(
                    &mut expressions,
                    MetaKey::Iifname,
                    Operator::Equal,
                    name.padded().into(),
                );
            }
            Condition::ToInterface(name) => {
                meta(
                    &mut expressions,
                    MetaKey::Oifname,
                    Operator::Equal,
                    name.padded().into(),
                );
            }
            Condition::ThroughLoopback => {
                let mut name = vec![0; 16];
                name[..2].copy_from_slice(b"lo");
                meta(&mut expressions, MetaKey::Oifname, Operator::Equal, name);
            }
            Condition::User(id) => meta(&mut expressions, MetaKey::SocketUserId, Operator::Equal, host(*id)),
            Condition::NotUser(id) => meta(&mut expressions, MetaKey::SocketUserId, Operator::NotEqual, host(*id)),
            Condition::Group(id) => meta(&mut expressions, MetaKey::SocketGroupId, Operator::Equal, host(*id)),
        }
    }
    match rule.then {
        Action::Leave => expressions.push(
            Expressions::Immediate(vec![
                Immediate::DestinationRegister(Register::Verdict),
                Immediate::Data(DataAttribute::Verdict(vec![VerdictAttribute::Code(Verdict::Return)])),
            ])
            .into(),
        ),
        Action::Redirect(port) => {
            expressions.push(
                Expressions::Immediate(vec![
                    Immediate::DestinationRegister(Register::Reg1),
                    Immediate::Data(DataAttribute::Value(port.to_be_bytes().into())),
                ])
                .into(),
            );
            expressions.push(
                Expressions::Other {
                    expression_type: "redir".to_owned(),
                    attributes: vec![DefaultNla::new(
                        REDIRECT_PORT,
                        u32::from(Register::Reg1).to_be_bytes().into(),
                    )],
                }
                .into(),
            );
        }
    }
    expressions
}

/// Identifiers are compared in the host's order.
fn host(id: u32) -> Vec<u8> {
    id.to_ne_bytes().into()
}

fn meta(expressions: &mut Vec<Expression>, key: MetaKey, operator: Operator, value: Vec<u8>) {
    expressions.push(Expressions::Meta(vec![Meta::Key(key), Meta::DestinationRegister(Register::Reg1)]).into());
    compare(expressions, operator, value);
}

fn compare(expressions: &mut Vec<Expression>, operator: Operator, value: Vec<u8>) {
    expressions.push(
        Expressions::Cmp(vec![
            Cmp::SourceRegister(Register::Reg1),
            Cmp::Op(operator),
            Cmp::Data(DataAttribute::Value(value)),
        ])
        .into(),
    );
}

#[derive(Clone, Copy)]
enum Side {
    Source,
    Destination,
}

/// Compares the packet's address, after its family.
fn address(expressions: &mut Vec<Expression>, range: IpNet, side: Side, operator: Operator) {
    let octets = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => address.octets().to_vec(),
        std::net::IpAddr::V6(address) => address.octets().to_vec(),
    };
    let (family, offset, length) = match (range, side) {
        (IpNet::V4(_), Side::Source) => (NetfilterProtoFamily::IPv4, 12, 4),
        (IpNet::V4(_), Side::Destination) => (NetfilterProtoFamily::IPv4, 16, 4),
        (IpNet::V6(_), Side::Source) => (NetfilterProtoFamily::IPv6, 8, 16),
        (IpNet::V6(_), Side::Destination) => (NetfilterProtoFamily::IPv6, 24, 16),
    };
    meta(expressions, MetaKey::Nfproto, Operator::Equal, vec![family.into()]);
    let mask = (range.prefix_len() < range.max_prefix_len()).then(|| octets(range.netmask()));
    let place = (NETWORK_HEADER, offset, length);
    payload(expressions, place, mask, operator, octets(range.network()));
}

fn payload(
    expressions: &mut Vec<Expression>,
    (base, offset, length): (u32, u32, u32),
    mask: Option<Vec<u8>>,
    operator: Operator,
    value: Vec<u8>,
) {
    expressions.push(
        Expressions::Payload(vec![
            Payload::DestinationRegister(Register::Reg1),
            Payload::Base(base),
            Payload::Offset(offset),
            Payload::Len(length),
        ])
        .into(),
    );
    if let Some(mask) = mask {
        let nothing = vec![0; mask.len()];
        expressions.push(
            Expressions::Bitwise(vec![
                Bitwise::SourceRegister(Register::Reg1),
                Bitwise::DestinationRegister(Register::Reg1),
                Bitwise::Length(length),
                Bitwise::Mask(DataAttribute::Value(mask)),
                Bitwise::Xor(DataAttribute::Value(nothing)),
            ])
            .into(),
        );
    }
    compare(expressions, operator, value);
}
