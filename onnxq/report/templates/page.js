/* What every page does: what is too wide to be seen can be scrolled by keyboard, too. */
"use strict";
(() => {
  function name(region) {
    const section = region.closest("section");
    const heading = section && section.querySelector("h2");
    return heading ? heading.textContent : "table";
  }

  function check() {
    for (const region of document.querySelectorAll(".scroll")) {
      if (region.scrollWidth > region.clientWidth) {
        region.tabIndex = 0;
        region.setAttribute("role", "region");
        region.setAttribute("aria-label", `${name(region)}, wider than the page`);
      } else {
        for (const own of ["tabindex", "role", "aria-label"]) region.removeAttribute(own);
      }
    }
  }

  check();
  addEventListener("resize", check);
  document.addEventListener("toggle", check, true);
})();
