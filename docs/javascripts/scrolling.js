// Wide tables scroll on their own, and the keyboard has to reach what scrolls. Material wraps them after the page has loaded.
function reachable() {
  for (const wrap of document.querySelectorAll(".md-typeset__scrollwrap:not([tabindex])")) {
    wrap.tabIndex = 0;
  }
}
new MutationObserver(reachable).observe(document.body, { childList: true, subtree: true });
reachable();
