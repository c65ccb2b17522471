//! The admission webhooks: pods come in, pods with a proxy beside them go out; policy objects come in, a judgement goes
//! out. What a pod becomes is decided by pure functions; around them is only HTTPS.
