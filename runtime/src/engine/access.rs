//! What a plan says about the doors of an endpoint, as settings of the runtime.

use tidegate_pipelines::plan::{CertificateName, ClientCert, EndpointSpec};

use super::sources::lookup;
use crate::mqtt::security::{AclRule, CertificateUser, SecurityConfig, TokenConfig};
use crate::mqtt::{ClientCertificates, ServerTlsConfig, TlsListener, WebSocketListener};

/// TLS besides.
pub(super) async fn tls(spec: &EndpointSpec) -> anyhow::Result<Option<TlsListener>> {
    let Some(tls) = &spec.tls else { return Ok(None) };
    let listen = match &tls.listen {
        Some(listen) => Some(lookup(listen).await?),
        None => None,
    };
    let files = ServerTlsConfig {
        cert: tls.cert.clone(),
        key: tls.key.clone(),
        client_ca: tls.client_ca.clone(),
        crl: tls.crl.clone(),
        client_certificates: match tls.client_cert {
            ClientCert::None => ClientCertificates::None,
            ClientCert::Optional => ClientCertificates::Optional,
            ClientCert::Required => ClientCertificates::Required,
        },
    };
    Ok(Some(TlsListener { listen, files }))
}

/// WebSocket besides.
pub(super) async fn websocket(spec: &EndpointSpec) -> anyhow::Result<Option<WebSocketListener>> {
    let Some(websocket) = &spec.websocket else { return Ok(None) };
    Ok(Some(WebSocketListener {
        listen: lookup(&websocket.listen).await?,
        path: websocket.path.clone(),
        tls: websocket.tls,
        origins: websocket.origins.clone(),
    }))
}

/// Who may connect, and what they may do. The users of the plan are the endpoint's own setting.
pub(super) fn security(spec: &EndpointSpec) -> SecurityConfig {
    let rules = spec.acl.iter().map(|rule| AclRule {
        user: rule.user.clone(),
        client: rule.client.clone(),
        publish: rule.publish.clone(),
        subscribe: rule.subscribe.clone(),
        deny_publish: rule.deny_publish.clone(),
        deny_subscribe: rule.deny_subscribe.clone(),
    });
    SecurityConfig {
        users: Default::default(),
        users_file: spec.users_file.clone(),
        tokens: spec.jwt.as_ref().map(|jwt| TokenConfig {
            secret: jwt.secret.as_ref().map(|secret| secret.expose().to_owned()),
            key_file: jwt.key_file.clone(),
            algorithms: jwt.algorithms.clone(),
            audience: jwt.audience.clone(),
            issuer: jwt.issuer.clone(),
            user_claim: jwt.user_claim.clone(),
        }),
        certificate_user: spec.certificate_user.map(|which| match which {
            CertificateName::Common => CertificateUser::CommonName,
            CertificateName::Alternative => CertificateUser::AlternativeName,
        }),
        acl: rules.collect(),
        connections_per_address: spec.connections_per_address,
        connections_per_user: spec.connections_per_user,
        rate_max: spec.rate_max,
    }
}
