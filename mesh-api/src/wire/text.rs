//! Matchers of text and addresses, and header names and values.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use ipnet::IpNet;

use super::field::{FieldError, InField, each};
use super::proto::{self, text::Match};
use crate::model::{FullRegex, IpBlocks, TextMatch};

pub(super) fn encode_text(text: &TextMatch) -> proto::Text {
    let value = match text {
        TextMatch::Exact(value) => Match::Exact(value.to_string()),
        TextMatch::Prefix(value) => Match::Prefix(value.to_string()),
        TextMatch::Regex(regex) => Match::Regex(regex.as_str().to_owned()),
        TextMatch::ExactIgnoreCase(value) => Match::ExactIgnoreCase(value.to_string()),
        TextMatch::PrefixIgnoreCase(value) => Match::PrefixIgnoreCase(value.to_string()),
        TextMatch::Present => Match::Present(true),
    };
    proto::Text { r#match: Some(value) }
}

pub(super) fn decode_text(text: proto::Text) -> Result<TextMatch, FieldError> {
    Ok(match text.r#match {
        Some(Match::Exact(value)) => TextMatch::Exact(value.into()),
        Some(Match::Prefix(value)) => TextMatch::Prefix(value.into()),
        Some(Match::Regex(source)) => TextMatch::Regex(FullRegex::new(&source).field("regex")?),
        Some(Match::ExactIgnoreCase(value)) => TextMatch::ExactIgnoreCase(value.into()),
        Some(Match::PrefixIgnoreCase(value)) => TextMatch::PrefixIgnoreCase(value.into()),
        Some(Match::Present(_)) => TextMatch::Present,
        None => {
            return Err(FieldError::new(
                "match",
                "is missing, or of a kind unknown to this release",
            ));
        }
    })
}

pub(super) fn encode_address(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(v4) => Bytes::copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => Bytes::copy_from_slice(&v6.octets()),
    }
}

pub(super) fn decode_address(field: &str, bytes: &[u8]) -> Result<IpAddr, FieldError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        Ok(v4.into())
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
        Ok(v6.into())
    } else {
        Err(FieldError::new(
            field,
            format_args!("an address of {} bytes: expected 4 or 16", bytes.len()),
        ))
    }
}

pub(super) fn encode_range(range: &IpNet) -> proto::IpRange {
    proto::IpRange {
        address: encode_address(range.addr()),
        prefix: range.prefix_len().into(),
    }
}

pub(super) fn decode_range(range: proto::IpRange) -> Result<IpNet, FieldError> {
    let address = decode_address("address", &range.address)?;
    let prefix = u8::try_from(range.prefix).field("prefix")?;
    IpNet::new(address, prefix).field("prefix")
}

pub(super) fn encode_blocks(blocks: &IpBlocks) -> proto::IpRanges {
    proto::IpRanges {
        ranges: blocks.0.iter().map(encode_range).collect(),
    }
}

pub(super) fn decode_blocks(blocks: proto::IpRanges) -> Result<IpBlocks, FieldError> {
    each("ranges", blocks.ranges, decode_range).map(IpBlocks)
}

pub(super) fn header_name(field: &str, name: &str) -> Result<HeaderName, FieldError> {
    HeaderName::from_bytes(name.as_bytes())
        .map_err(|_| FieldError::new(field, format_args!("`{name}` is no header name")))
}

pub(super) fn header_value(field: &str, value: &Bytes) -> Result<HeaderValue, FieldError> {
    HeaderValue::from_maybe_shared(value.clone()).field(field)
}

pub(super) fn encode_header_value(value: &HeaderValue) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

/// A status that ends an exchange: what redirects, direct responses and aborts may have.
pub(super) fn status(field: &str, value: u32) -> Result<StatusCode, FieldError> {
    u16::try_from(value)
        .ok()
        .filter(|value| (200..600).contains(value))
        .and_then(|value| StatusCode::from_u16(value).ok())
        .ok_or_else(|| FieldError::new(field, format_args!("{value}: expected an HTTP status from 200 to 599")))
}
